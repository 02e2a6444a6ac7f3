"""Bias correction: what quantization shifts on average, taken back in the integer biases.

Rounded weights and clipped activations move a channel's mean. "empirical" measures the shift of each
stage's accumulators on pictures, in network order, earlier stages already quantized and corrected
(Nagel et al. 2019, arXiv 1906.04721, section 4.2 and appendix D). "analytic" computes it from the
rounding errors of the weights and the mean of each input channel, borders ignored.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from .twin import Twin

BiasCorrection = Literal["none", "empirical", "analytic"]
BIAS_CORRECTIONS: tuple[BiasCorrection, ...] = get_args(BiasCorrection)


@torch.no_grad()
def correct_biases(twin: Twin, names: list[str], x: Tensor, how: BiasCorrection) -> None:
    """Correct the biases of these stages on ``x: (B, 3, H, W)`` of 0..255. Leaves all stages quantized."""
    twin.set_rounding(twin.names(), False, False)
    real: dict[str, Tensor] = {}  # what each stage takes in when everything is float
    y = _record(twin, "g_a", x, real)
    y_hat = _record_hyper(twin, y, real)
    _record(twin, "g_s", y_hat, real)
    twin.set_rounding(twin.names(), True, True)

    def through(part: str, q: Tensor) -> Tensor:
        q = twin.entering(part, q)
        for name in twin.order[part]:
            stage, in_log = twin.stage(name), twin.in_log(name)
            if name in names:
                level, weight = stage.level_weight(in_log), stage.scaled_weight(in_log)
                axes = (0, 2, 3)
                if how == "empirical":
                    zero = torch.zeros_like(stage.bias0)
                    shift = stage.convolve(q, level, zero) - stage.convolve(real[name], weight, zero)
                    error = shift.mean(axes)
                else:
                    taps = (level - weight).sum((2, 3)) / (stage.stride**2 if stage.transposed else 1)
                    mean = q.mean(axes)
                    error = taps.T @ mean if stage.transposed else taps @ mean
                stage.bias.sub_(error / stage.bias_unit)
            q = stage(q, in_log)
        return q

    y = through("g_a", x)
    if twin.hyper_log is not None:
        z = through("h_a", twin.hyper_input(y))
        through("h_s", twin.hyper_symbols(z)[1])
    y_hat = twin.latents(y)[0]
    through("g_s", y_hat)


def _record(twin: Twin, part: str, q: Tensor, into: dict[str, Tensor]) -> Tensor:
    q = twin.entering(part, q)
    for name in twin.order[part]:
        into[name] = q
        q = twin.stage(name)(q, twin.in_log(name))
    return q


def _record_hyper(twin: Twin, y: Tensor, into: dict[str, Tensor]) -> Tensor:
    if twin.hyper_log is not None:
        z = _record(twin, "h_a", twin.hyper_input(y), into)
        _record(twin, "h_s", twin.hyper_symbols(z)[1], into)
    return twin.latents(y)[0]
