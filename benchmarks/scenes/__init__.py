"""Text to image in small: captions of scenes of digits, and what is made of them."""
