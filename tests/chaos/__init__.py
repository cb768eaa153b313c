"""Real nodes under random work and disasters of all kinds at the same time."""
