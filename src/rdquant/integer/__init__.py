"""Exact integer execution: the contract, its float64 reference, and a fast engine that equals it."""

from .codec import LATENT_SHIFT_LIMIT, Z_FRACTION_BITS, IntegerCodec, scale_thresholds
from .network import Engine, IntegerNetwork, default_engine
from .stages import Compensate, DivisiveNormalization, IntegerConv, Requantize, Stage

__all__ = [
    "LATENT_SHIFT_LIMIT",
    "Z_FRACTION_BITS",
    "Compensate",
    "DivisiveNormalization",
    "Engine",
    "IntegerCodec",
    "IntegerConv",
    "IntegerNetwork",
    "Requantize",
    "Stage",
    "default_engine",
    "scale_thresholds",
]
