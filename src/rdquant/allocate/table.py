"""The sensitivity table: what quantizing one layer alone does to the codec's J.

``zeta_n(b) = (J(only layer n at b bits) - J_float) / J_float`` (FMPQ, Hossain, Duan and Zhu 2024,
arXiv 2506.01221) on calibration pictures. One pass in network order fills it: what lies before a layer is
computed once for all widths (`rdquant.passes.suffix`), and the rate is not computed for the synthesis.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..codec import Codec
from ..codecs.protocol import Density
from ..errors import CalibrationError, UsageError
from ..files.atomic import atomic_write
from ..files.integer_models import file_bytes
from ..passes.calibration import Calibration
from ..passes.config import QuantizeConfig
from ..passes.convert import to_integer
from ..passes.mixed import is_mixing
from ..passes.rdo import Trace
from ..passes.sized import quantize_to_size
from ..passes.suffix import SuffixCost
from ..passes.twin import Twin
from .sizes import LayerSizes

TABLE_VERSION = 2
BITS = (2, 3, 4, 5, 6, 7, 8)
#: zetas below this are not told from nothing; and the least that a width can cost
NOISE, LEAST = 5e-4, 1e-6


@dataclass(frozen=True)
class SensitivityTable:
    """``zeta[layer][bits]``, with the sizes that a search needs. Round-trips through JSON."""

    zeta: Mapping[str, Mapping[int, float]]
    j_float: float
    sizes: LayerSizes
    evaluations: int = 0  #: model evaluations it took (each a part of a whole forward pass)
    seconds: float = 0.0

    @property
    def layers(self) -> list[str]:
        return list(self.zeta)

    @property
    def bits(self) -> list[int]:
        """All widths of any layer, rising."""
        return sorted({b for row in self.zeta.values() for b in row})

    def monotone(self) -> SensitivityTable:
        """The same with ``zeta`` positive and falling in bits: what searches rely on.

        A width that measures worse than a smaller one gets the smaller one's value. Where that is below
        `NOISE`, it is what the widest width above the noise leads to expect: a quarter with each bit. Small
        as those values are, many layers' make a difference that no single measurement shows.
        """
        out: dict[str, dict[int, float]] = {}
        for layer, row in self.zeta.items():
            best, fixed = float("inf"), {}
            for b in sorted(row):
                best = min(best, max(row[b], LEAST))
                fixed[b] = best
            known = max((b for b in fixed if fixed[b] >= NOISE), default=min(fixed))
            out[layer] = {b: z if b <= known else fixed[known] / 4 ** (b - known) for b, z in fixed.items()}
        return dataclasses.replace(self, zeta=out)

    def to_json(self) -> dict[str, Any]:
        return {"version": TABLE_VERSION, **dataclasses.asdict(self)}

    def save(self, path: Path) -> None:
        with atomic_write(path) as handle:
            handle.write(json.dumps(self.to_json(), indent=1).encode())

    @classmethod
    def load(cls, path: Path) -> SensitivityTable:
        """Raises `UsageError` for a file that is no table."""
        try:
            d = dict(json.loads(path.read_text()))
            if d.pop("version", None) != TABLE_VERSION:
                raise UsageError(f"{path} is no sensitivity table of version {TABLE_VERSION}")
            d["zeta"] = {n: {int(b): float(z) for b, z in row.items()} for n, row in d["zeta"].items()}
            sizes = dict(d["sizes"])
            rows = sizes["weights"].items()
            sizes["weights"] = {n: {int(b): int(size) for b, size in row.items()} for n, row in rows}
            d["sizes"] = LayerSizes(**sizes)
            return cls(**d)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"{path} is no sensitivity table: {error}") from None


class WidthTwins:
    """Twins of one codec at several widths, from which a mixed one can be put together at once.

    ``density``: of the codec's factorized latent; ``gains: (M,)``: the synthesis gain, if ``seen`` has it.
    """

    def __init__(
        self,
        codec: Codec,
        seen: Calibration,
        config: QuantizeConfig,
        density: Density,
        bits: tuple[int, ...] = BITS,
    ) -> None:
        self.codec, self.seen, self.config, self.density = codec, seen, config, density
        self.twins: dict[int, Twin] = {}
        self.codecs: dict[int, Codec] = {}
        self.gains = seen.gains
        layers = [name for name in seen.grams if not is_mixing(name)]
        for b in bits:  # said of each layer, as a plan does: the ends of transforms get no more than others
            uniform = dataclasses.replace(config, weight_bits=b, layer_bits=dict.fromkeys(layers, b))
            self.codecs[b], unrounded = to_integer(codec, seen, uniform)
            self.twins[b] = Twin(self.codecs[b], unrounded, density)

    @property
    def layers(self) -> list[str]:
        """The stages that have a width, in network order: mixings keep their bits."""
        return [n for n in next(iter(self.twins.values())).names() if not is_mixing(n)]

    def mixed(self, plan: Mapping[str, int], outputs: bool = True) -> Twin:
        """The twin whose layers have the plan's widths; ``outputs``: activations quantized as well."""
        base = next(iter(self.twins.values()))
        twin = base.with_stages_of(lambda name: base if is_mixing(name) else self.twins[plan[name]])
        twin.set_rounding(twin.names(), True, outputs)
        return twin

    def unrounded(self) -> Twin:
        """The twin that rounds nothing: the float codec."""
        twin = self.mixed(dict.fromkeys(self.layers, max(self.twins)))
        twin.set_rounding(twin.names(), False, False)
        return twin

    def file_bytes(self, plan: Mapping[str, int]) -> int:
        """Size of the model file of a plan, made and measured."""
        config = dataclasses.replace(self.config, layer_bits=dict(plan))
        return file_bytes(to_integer(self.codec, self.seen, config)[0])

    def filled(self, plan: Mapping[str, int], target: int) -> Twin:
        """What `rdquant quantize --plan` makes of a plan before any search: steps so much finer or coarser
        that the file has ``target`` bytes. Raises `CalibrationError` where it cannot.
        """
        made: list[tuple[Codec, dict[str, Tensor]]] = []

        def make(config: QuantizeConfig) -> tuple[Codec, Trace]:
            made.append(to_integer(self.codec, self.seen, config))
            return made[-1][0], Trace([])

        config = dataclasses.replace(self.config, layer_bits=dict(plan))
        quantize_to_size(make, (self.codec, self.seen), config, target)
        return Twin(*made[-1], self.density)

    @contextmanager
    def swapped(self, base: Twin, name: str, bits: int) -> Iterator[None]:
        """``base``, which `mixed` made, with one layer's weights rounded at ``bits``; then as it was."""
        was = base.weights_rounded[name], base.outputs_rounded[name]
        own = base.with_stages_of(lambda _: base)
        base.adopt(name, self.twins[bits])
        base.set_rounding([name], True, False)
        try:
            yield
        finally:
            base.adopt(name, own)
            base.set_rounding([name], *was)

    def cost(self, plan: Mapping[str, int] | None, x: Tensor, lambda_: float, outputs: bool = True) -> float:
        """J of ``x: (B, 3, H, W)``, 0..255, under a whole plan (None: in float): one model evaluation."""
        return cost_of(self.unrounded() if plan is None else self.mixed(plan, outputs), x, lambda_)


@torch.no_grad()
def cost_of(twin: Twin, x: Tensor, lambda_: float) -> float:
    """J of ``x: (B, 3, H, W)``, 0..255, as the twin stands."""
    return float(twin(x).cost(lambda_, x[:, 0].numel()))


def width_costs(
    twins: WidthTwins, base: Twin, suffix: SuffixCost, name: str, widths: list[int]
) -> dict[int, float]:
    """J with one layer's weights at each width, all else as in ``base``, which `WidthTwins.mixed` made.

    ``suffix``: of ``base``; advanced to the layer, which is left as it was.
    """
    suffix.advance(name)
    costs = {}
    for b in widths:
        with twins.swapped(base, name, b):
            costs[b] = suffix.cost()
    return costs


def measure_table(
    twins: WidthTwins,
    x: Tensor,
    lambda_: float,
    parameters: int,
    store: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> SensitivityTable:
    """The table over all layers and widths. ``x: (B, 3, H, W)`` of 0..255; ``store``: JSON kept after
    every layer and resumed from. Raises `CalibrationError` when J is not finite.
    """
    import time

    start = time.perf_counter()
    widths = sorted(twins.twins)
    names = twins.layers
    rows: dict[str, dict[int, float]] = {}
    stored = store is not None and store.exists()
    if stored and store is not None:
        old = SensitivityTable.load(store)
        rows = {n: dict(r) for n, r in old.zeta.items() if sorted(r) == widths}
    base = twins.unrounded()
    suffix = SuffixCost(base, x, lambda_)
    suffix.advance(names[0])
    j_float = suffix.cost()
    evaluations = 1
    sizes = LayerSizes.of(twins.codecs, parameters)
    for i, name in enumerate(names):
        if name not in rows:
            costs = width_costs(twins, base, suffix, name, widths)
            if not np.isfinite(list(costs.values())).all():
                raise CalibrationError(f"J became {costs} with {name} at these bits")
            rows[name] = {b: (j - j_float) / j_float for b, j in costs.items()}
            evaluations += len(costs)
        table = SensitivityTable(rows, j_float, sizes, evaluations, time.perf_counter() - start)
        if store is not None:
            table.save(store)
        if progress:
            progress(i + 1, len(names), name)
    return table
