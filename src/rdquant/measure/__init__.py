"""Honest evaluation: real files, decoded pictures, curves, BD-rate, and classical codecs to compare with."""

from .anchors import ANCHORS, run_anchor
from .bdrate import BDRate, bd_rate, bd_rate_per_image, bd_rate_points
from .metrics import ms_ssim, ms_ssim_db, psnr
from .results import Curve, ImageResult, Point, machine
from .run import RoundTripError, evaluate, evaluate_image

__all__ = [
    "ANCHORS",
    "BDRate",
    "Curve",
    "ImageResult",
    "Point",
    "RoundTripError",
    "bd_rate",
    "bd_rate_per_image",
    "bd_rate_points",
    "evaluate",
    "evaluate_image",
    "machine",
    "ms_ssim",
    "ms_ssim_db",
    "psnr",
    "run_anchor",
]
