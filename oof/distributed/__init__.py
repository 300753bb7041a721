"""Training of one fold job on several processes."""
