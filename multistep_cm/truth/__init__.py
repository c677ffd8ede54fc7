"""The laboratory: distributions whose denoiser and flow are known exactly."""
