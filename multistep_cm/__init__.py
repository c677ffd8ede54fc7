"""Multistep Consistency Models (arXiv 2403.06807) in JAX and Flax."""

__version__ = "0.1.0"
