"""Numbers about samples: Fréchet distance, class accuracy, variance, sample files."""
