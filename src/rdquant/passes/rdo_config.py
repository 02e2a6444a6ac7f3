"""How the integers of a codec are searched, as data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..errors import UsageError
from .bias import BIAS_CORRECTIONS, BiasCorrection
from .config import QuantizeConfig

#: Which parameters move at a time: a stage's (later stages float), a network's, or all.
Strategy = Literal["layer", "block", "joint"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
Objective = Literal["reconstruction", "J", "difference"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
#: what gradients may move -> the twin's parameters, and their learning rate relative to the run's
GROUPS: dict[str, dict[str, float]] = {
    "scales": {"out_log": 0.4},
    "rounding": {"weight": 1.0, "gamma": 1.0},
    "bias": {"bias": 1.0, "beta_log": 0.05},
}
#: gradient steps where nothing else is asked for, and some layer has fewer bits than this
STEPS, FEW_BITS = 250, 6


@dataclass(frozen=True)
class RdoConfig:
    """How the integers are searched."""

    lambda_: float | None = None
    """Of the float parent: weight of ``255^2 * MSE`` against bpp. None where J decides nothing."""
    strategy: Strategy = "joint"
    grid: bool = False
    """First search the scales of activations, and of weights rounded to nearest, on a grid."""
    steps: int | None = None
    """Gradient steps in all, shared by the stages or networks where they go one by one. None: `STEPS` where
    a layer has fewer than `FEW_BITS`. Otherwise the conversion leaves little that gradients would find.
    """
    objective: Objective = "reconstruction"
    """What gradients lower: J itself, the square of what it has over the float codec's, or its expansion
    around the float codec; see `rdquant.passes.judges.Judge`."""
    relative: bool = True
    """Whether a picture's squared error counts by the inverse of what the float codec leaves of it."""
    learn: tuple[str, ...] = ("rounding", "bias")
    """What gradients move; nothing of it: grid and bias correction only."""
    bias_correction: BiasCorrection = "none"
    rate: Literal["noise", "rounded"] = "noise"
    """How the rate's gradient sees latents; distortion, reports and results always see them rounded."""
    lr: float = 0.012
    """Adam's rate for weights, in units of the distance of levels."""
    scale_share: float = 0.4
    """Share of the steps that goes to scales, before any weight is rounded."""
    batch: int = 4
    crop: int = 192
    bf16: bool = False
    """Faster, and so coarse that it drowns what there is to learn at more than 5 bits."""
    compile: bool = True
    seed: int = 1

    def __post_init__(self) -> None:
        if self.lambda_ is not None and self.lambda_ <= 0:
            raise UsageError(f"lambda must be positive, got {self.lambda_}")
        if self.strategy not in STRATEGIES:
            raise UsageError(f"strategy must be one of {', '.join(STRATEGIES)}, got {self.strategy!r}")
        if self.bias_correction not in BIAS_CORRECTIONS:
            raise UsageError(
                f"bias_correction must be one of {', '.join(BIAS_CORRECTIONS)}, got {self.bias_correction!r}"
            )
        if self.objective not in OBJECTIVES:
            raise UsageError(f"objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}")
        if self.rate not in ("noise", "rounded"):
            raise UsageError(f"rate must be noise or rounded, got {self.rate!r}")
        if unknown := set(self.learn) - set(GROUPS):
            raise UsageError(f"learn takes {', '.join(GROUPS)}, got {', '.join(sorted(unknown))}")
        if (self.steps or 0) < 0 or self.batch < 1:
            raise UsageError(f"steps must be 0 or more and batch 1 or more, got {self.steps}, {self.batch}")
        if self.crop < 64 or self.crop % 64:
            raise UsageError(f"crop must be a positive multiple of 64, got {self.crop}")
        if self.lr <= 0:
            raise UsageError(f"lr must be positive, got {self.lr}")

    def steps_for(self, quantize: QuantizeConfig) -> int:
        """`steps`, decided."""
        if self.steps is not None:
            return self.steps
        return STEPS if min((quantize.weight_bits, *quantize.layer_bits.values())) < FEW_BITS else 0

    def searches(self, quantize: QuantizeConfig) -> bool:
        """Whether J decides anything: gradients, grids or biases."""
        moves = self.steps_for(quantize) > 0 and len(self.learn) > 0
        return moves or self.grid or self.bias_correction != "none"

    @property
    def weight(self) -> float:
        """`lambda_`, where J decides. Raises `UsageError` without one."""
        if self.lambda_ is None:
            raise UsageError(
                "J decides here, over gradient steps or what else is tried, and needs the lambda that the "
                "codec was trained with: give --lambda, in Python lambda_"
            )
        return self.lambda_

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "learn": list(self.learn)}
