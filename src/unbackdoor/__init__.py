"""unbackdoor: make, find and remove backdoors in neural networks, and measure all of it honestly."""

__version__ = "0.1.0"
