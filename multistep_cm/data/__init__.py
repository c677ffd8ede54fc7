"""Datasets in, batches out, in an order that is a function of seed and step."""
