"""What is left after kill -9 and power cuts: see `rounds`."""
