"""The mathematics of diffusion and of multistep consistency. Pure functions of jax."""
