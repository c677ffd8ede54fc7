"""Where arrays live: mesh, rules, processes."""
