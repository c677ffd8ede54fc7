"""Commands that make the numbers and pictures of the docs."""
