"""Students trained on mixtures of Gaussians, whose exact maps are known."""
