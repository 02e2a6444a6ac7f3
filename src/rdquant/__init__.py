"""rdquant: make a trained learned image codec shippable."""

__version__ = "0.1.0"
