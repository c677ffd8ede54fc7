"""What a config costs on devices that nobody has here, before anyone pays for them."""
