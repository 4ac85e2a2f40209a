"""Deep attentive hierarchical VAEs at any scale. Importing this package imports nothing heavy."""

__version__ = "0.1.0"
