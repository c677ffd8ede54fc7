"""A train step against the same step of other repositories, driven alternately."""
