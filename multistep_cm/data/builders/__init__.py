"""Our own TFDS builders, and how a builder is found by name."""
