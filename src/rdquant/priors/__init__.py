"""Entropy models by composition: which part of a latent is coded from what."""

from .base import PRIORS, Part, Prior, Run, RunArrays, prior_from_json
from .four_part import FourPart
from .groups import ChannelGroups
from .kinds import Factorized, Hyperprior
from .serial import Serial

__all__ = [
    "PRIORS",
    "ChannelGroups",
    "Factorized",
    "FourPart",
    "Hyperprior",
    "Part",
    "Prior",
    "Run",
    "RunArrays",
    "Serial",
    "prior_from_json",
]
