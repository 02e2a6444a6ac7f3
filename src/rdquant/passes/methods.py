"""The methods of the literature by name, each as strong as it can honestly be made here.

A method is a configuration of the passes and a handler that runs them (as in torchao, where a config names
its handler). All of them make integers in this package's formats, so that what differs between two results is
the method. Where one departs from its paper, `Method.departures` says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..codec import Codec
from ..codecs.protocol import TrainedCodec
from ..errors import UsageError
from ..graph import Node
from ..graph.capture import capture
from .calibration import Calibration
from .config import QuantizeConfig
from .convert import to_integer
from .crops import probe
from .flow import through
from .held_out import HeldOut, split
from .mixing import Progress
from .prepare import prepare
from .rdo import RdoCalibration, Trace
from .rdo_config import RdoConfig
from .reconstruct import STEPS, Reconstruction
from .twin import Twin


@dataclass(frozen=True)
class Job:
    """What a method is to do."""

    codec: TrainedCodec
    pictures: list[np.ndarray]  #: ``(H, W, 3)`` uint8 each
    quantize: QuantizeConfig
    rdo: RdoConfig
    folder: Path | None = None  #: to resume from, where the method can
    prepared: tuple[Codec, Calibration] | None = None
    """What `rdquant.passes.prepare` made of the same codec, pictures and options, if that was done before."""
    progress: Progress | None = None


#: the integer codec, and what J of held-out pictures did on the way
Handler = Callable[[Job], tuple[Codec, Trace]]
#: what is tried where ranges are percentiles: shares of samples
PERCENTILES = tuple({"percentile": share} for share in (1.0, 0.999, 0.9999, 0.99999, 0.999999))
#: and where they are of least squared error: how often that of a clipped value counts
CLIP_COSTS = tuple({"clip_cost": cost} for cost in (1.0, 4.0, 16.0))


@dataclass(frozen=True)
class Method:
    """What a name stands for: options over the defaults, and who carries them out."""

    about: str
    source: str
    handler: Handler
    quantize: Mapping[str, Any] = field(default_factory=dict)  #: of `QuantizeConfig`
    search: Mapping[str, Any] = field(default_factory=dict)  #: of `RdoConfig`
    departures: str = "none"
    pictures: int | None = None  #: calibration pictures at most, spread over those given


def by_gradients(job: Job) -> tuple[Codec, Trace]:
    """Conversion, and what `RdoConfig` asks for of grids, biases and gradients. Where it asks for nothing and
    does not know lambda, there is no trace of J.
    """
    if job.rdo.lambda_ is None and not job.rdo.searches(job.quantize):
        prepared = job.prepared or prepare(capture(job.codec), job.pictures, job.quantize, job.progress)
        return Twin(*to_integer(*prepared, job.quantize), job.codec.entropy_bottleneck).export(), Trace([])
    run = RdoCalibration(
        job.codec, job.pictures, job.quantize, job.rdo, job.folder, job.prepared, job.progress
    )
    return run.run(job.progress), run.trace


class _Start:
    """A codec converted and judged, nothing searched yet: with the ranges, of ``trials``, that held-out
    pictures like best.
    """

    def __init__(self, job: Job, trials: tuple[dict[str, float], ...]) -> None:
        self.prepared = job.prepared or prepare(capture(job.codec), job.pictures, job.quantize, job.progress)
        self.learned, judging = split(job.pictures)

        def converted(options: dict[str, float]) -> Twin:
            config = dataclasses.replace(job.quantize, **options)  # type: ignore[arg-type]
            return Twin(*to_integer(*self.prepared, config), job.codec.entropy_bottleneck)

        self.twin = converted(trials[0])
        self.held, self.trace = HeldOut(self.twin, judging, job.rdo.weight), Trace([])
        self.trace.add(step=0, unit="float", **self.held.float_j)
        self.trace.add(step=0, unit="start", **self.held.report(self.twin))
        least = self.held.cost(self.twin)
        for i, options in enumerate(trials[1:], 1):
            if (j := self.held.cost(twin := converted(options))) < least:
                self.twin, least = twin, j
            if job.progress:
                job.progress(i + 1, len(trials), ", ".join(f"{k} {v}" for k, v in options.items()))

    def end(self, steps: int = 0) -> tuple[Codec, Trace]:
        self.trace.add(step=steps, unit="end", **self.held.report(self.twin))
        return self.twin.export(), self.trace


def by_trials(trials: tuple[dict[str, float], ...]) -> Handler:
    """Conversion with the best of some options for ranges."""

    def handler(job: Job) -> tuple[Codec, Trace]:
        return _Start(job, trials).end()

    return handler


def by_reconstruction(least: int, fisher: bool, scales: bool) -> Handler:
    """AdaRound or BRECQ, see `Reconstruction`."""

    def handler(job: Job) -> tuple[Codec, Trace]:
        start = _Start(job, CLIP_COSTS)
        x = probe(start.learned, job.rdo.crop, len(start.learned)).contiguous()
        run = Reconstruction(start.twin, x, job.rdo, start.held, least, fisher, scales)
        run.run(_energies(start.prepared[0], x), job.progress)
        return start.end(job.rdo.steps or STEPS)

    return handler


@torch.no_grad()
def _energies(codec: Codec, x: Tensor) -> dict[str, Tensor]:
    """By node of a float codec, mean squares of each channel on ``x: (B, 3, H, W)`` of 0..255."""
    found: dict[str, Tensor] = {}

    def note(network: str, node: Node, taken: tuple[Tensor, ...], out: Tensor) -> None:
        found[node.name] = out.square().mean((0, 2, 3))

    through(codec, x / 255, note)
    return found


_PLAIN: dict[str, Any] = {"rounding": "nearest", "mixing": "none", "number_format": "uniform"}
_NO_SEARCH: dict[str, Any] = {"steps": 0}
_REDUCED = "hundreds of gradient steps a unit instead of 10,000 to 20,000; integers; held-out pictures decide"

METHODS: dict[str, Method] = {
    "ours": Method(
        "mixing, two-sided rounding; below 6 bits codebooks, and gradients of J's expansion",
        "docs/quantization.md, docs/rdo-ptq.md",
        by_gradients,
    ),
    "minmax": Method(
        "each range as wide as what was seen; rounding to nearest",
        "Krishnamoorthi 2018, arXiv 1806.08342",
        by_gradients,
        {**_PLAIN, "weight_range": "minmax", "activation_range": "minmax"},
        _NO_SEARCH,
    ),
    "percentile": Method(
        "ranges without the outermost samples, how many held-out pictures decide; rounding to nearest",
        "Wu et al. 2020, arXiv 2004.09602",
        by_trials(PERCENTILES),
        {**_PLAIN, "weight_range": "percentile", "activation_range": "percentile"},
        _NO_SEARCH,
    ),
    "mse": Method(
        "ranges of least squared error, held-out pictures say what clipping costs; rounding to nearest",
        "Banner et al. 2019, arXiv 1810.05723 (by histogram instead of a distribution's formula)",
        by_trials(CLIP_COSTS),
        _PLAIN,
        _NO_SEARCH,
    ),
    "adaround": Method(
        "ranges as with mse; rounding learned layer by layer from outputs",
        "Nagel et al. 2020, arXiv 2004.10568",
        by_reconstruction(1, False, False),
        _PLAIN,
        departures=_REDUCED,
    ),
    "brecq": Method(
        "rounding, and ranges of activations, learned block by block from outputs, errors weighted by Fisher",
        "Li et al. 2021, arXiv 2102.05426",
        by_reconstruction(2, True, True),
        _PLAIN,
        departures=f"{_REDUCED}; a block is two layers or more up to where a single tensor leads on",
    ),
    "gptq": Method(
        "ranges as with mse; rounding errors of weights spread over those to come",
        "Frantar et al. 2023, arXiv 2210.17323",
        by_trials(CLIP_COSTS),
        {**_PLAIN, "rounding": "compensated"},
        _NO_SEARCH,
        departures="activations are quantized too; single moves refine the rounding",
    ),
    "rdo-ptq": Method(
        "ranges, rounding, biases by the codec's J, layer by layer, on 10 pictures; activations per tensor",
        "Shi, Lu and Ma 2023, arXiv 2211.02854; objective as in HAMP-LIC, equation 8",
        by_gradients,
        {**_PLAIN, "granularity": "tensor"},
        {
            "strategy": "layer", "objective": "difference", "grid": True, "compile": False,
            "learn": ("rounding", "bias"), "bias_correction": "empirical", "steps": 560,
        },
        departures=f"{_REDUCED}; static ranges, found on a grid of factors; biases are corrected and learned "
        "where the paper rescales them (its equation could not be read)",
        pictures=10,
    ),
}  # fmt: skip


def method_of(name: str) -> Method:
    """Raises `UsageError` for a name that is none."""
    if name not in METHODS:
        raise UsageError(f"the method must be one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]


def options_for(
    name: str, quantize: Mapping[str, Any], search: Mapping[str, Any]
) -> tuple[QuantizeConfig, RdoConfig]:
    """A method's options with others over them; where J decides, ``search`` has ``lambda_``.

    Raises `UsageError`.
    """
    method = method_of(name)
    config, rdo = QuantizeConfig(**{**method.quantize, **quantize}), RdoConfig(**{**method.search, **search})
    if method.handler is not by_gradients or rdo.searches(config):
        _ = rdo.weight
    return config, rdo


def quantize_by(name: str, job: Job, description: Mapping[str, Any] | None = None) -> tuple[Codec, Trace]:
    """A float codec made integer by a method: the codec and what J of held-out pictures did on the way.

    Options as `options_for` gives them, pictures as `pictures_for` does. Raises `UsageError`,
    `CalibrationError` and `BadModel`.
    """
    integer, trace = method_of(name).handler(job)
    about = {**integer.description, "method": name, "rdo": job.rdo.to_json(), **(description or {})}
    return dataclasses.replace(integer, description=about), trace


def pictures_for(name: str, pictures: list[np.ndarray]) -> list[np.ndarray]:
    """As many as the method takes, spread over those given."""
    most = method_of(name).pictures
    if most is None or len(pictures) <= most:
        return pictures
    return [pictures[i] for i in np.linspace(0, len(pictures) - 1, most).round().astype(int)]
