"""Samplers against truth: exact denoisers, so that only the sampler can err."""
