"""A sensitivity table from one gradient: what each layer's own error will do, to second order.

Around a trained codec J rises with the squares of what quantization changes: lambda times the error of the
picture, of the latent times its synthesis gain, and the bits that wrong means and scales cost (see
`rdquant.passes.judges.Mismatch`). Under an error e of a layer's weights a network's output changes by
``J e``, J the Jacobian. For random signs s, and A the roots of what squared errors of the output cost, the
mean of ``(s^T A J e)^2`` is ``|A J e|^2``, and ``s^T A J`` is one backward pass: all widths of all layers of
the network are inner products with it. A measured table runs the codec for each of them.

The hyper-coder is so small that the rate with each width is measured all the same: rounding z is no matter of
second order. Left out: errors that meet in later layers, and the curvature of J, which wide errors feel.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ..codec import Z_FRACTION_BITS
from ..errors import CalibrationError
from ..passes.flow import SEGMENTS, output_costs, segment_of
from ..passes.twin import Twin
from .sizes import LayerSizes
from .table import NOISE, SensitivityTable, WidthTwins

#: side of the tiles that have signs and a gradient of their own. Errors further apart hardly meet in a pixel,
#: and their products are but noise of the signs; more tiles, less noise
TILE = 128
TRANSFORMS = ("analysis", "synthesis")


@dataclass
class Projections:
    """What widths do to the output of their network, seen along random directions.

    ``rows``: by layer, ``(tiles, widths)``: the mean square over tiles of a sum of rows is what those layers'
    errors cost together, as a share of J of the float codec. ``base``: the float twin; ``bits`` of its
    latents, in ``pixels``; ``j_total``: its J, in bits.
    """

    rows: dict[str, Tensor]
    widths: list[int]
    base: Twin
    latents: Tensor
    bits: float
    j_total: float
    pixels: int

    @property
    def j_float(self) -> float:
        """Bits a pixel."""
        return self.j_total / self.pixels


def project(twins: WidthTwins, x: Tensor, lambda_: float, seed: int = 0) -> Projections:
    """One pass through the codec and back for each tile of ``x: (B, 3, H, W)`` of 0..255. Raises
    `CalibrationError` for twins that do not know the synthesis gain.
    """
    if twins.gains is None:
        raise CalibrationError("predicting sensitivities needs the synthesis gain: calibrate with `prepare`")
    names, widths = twins.layers, sorted(twins.twins)
    base = twins.unrounded()
    errors = {n: torch.stack([weight_error(twins, n, b).flatten() for b in widths]) for n in names}
    rows: dict[str, list[Tensor]] = {n: [] for n in names}
    generator = torch.Generator().manual_seed(seed)
    buffers = {n: base.layer(n).v.requires_grad_(True) for n in names}
    flow = _Flow(base, twins.gains, lambda_)
    try:
        for tile in _tiles(x):
            for part in SEGMENTS if base.integer.prior.hyper else ("analysis", "synthesis"):
                out, root = flow.through(part, tile)
                own = [n for n in names if segment_of(base.stages[n].network) == part]
                signs = torch.randint(0, 2, out.shape, generator=generator) * 2.0 - 1
                found = torch.autograd.grad(out, [buffers[n] for n in own], signs * root)
                for n, slope in zip(own, found, strict=True):
                    rows[n].append(errors[n] @ slope.flatten())
    finally:
        for buffer in buffers.values():
            buffer.requires_grad_(False)
    total = flow.bits + lambda_ / 3 * flow.squares
    stacked = {n: torch.stack(r) * (len(r) / total) ** 0.5 for n, r in rows.items()}
    return Projections(stacked, widths, base, torch.cat(flow.latents), flow.bits, total, x[:, 0].numel())


def predict_table(twins: WidthTwins, found: Projections, sizes: LayerSizes) -> SensitivityTable:
    """Predicted zetas of all layers and widths. Counts as one evaluation: `project` takes each picture once
    through the codec, and back.
    """
    start = time.perf_counter()
    base, widths = found.base, found.widths
    zeta = {n: dict(zip(widths, row.square().mean(0).tolist(), strict=True)) for n, row in found.rows.items()}
    for name in (n for n in twins.layers if segment_of(base.stages[n].network) not in TRANSFORMS):
        for b in widths:
            with twins.swapped(base, name, b), torch.no_grad():
                _, bits_y, bits_z = base.latents(found.latents)
            more = (float(bits_y + bits_z) - found.bits) / found.j_total
            zeta[name][b] = max(zeta[name][b], more)
            if more < NOISE:  # and so will the wider ones be
                break
    return SensitivityTable(zeta, found.j_float, sizes, 1, time.perf_counter() - start)


@torch.no_grad()
def weight_error(twins: WidthTwins, name: str, bits: int) -> Tensor:
    """What a width does to a layer's weights, in units of the widest twin's steps: shaped as they are."""
    layer, reference = twins.twins[bits].layer(name), twins.twins[max(twins.twins)].layer(name)
    own, widest = (dataclasses.replace(x.op, weight=x.v).by_output() for x in (layer, reference))
    steps = widest.square().sum((1, 2, 3)) / own.square().sum((1, 2, 3)).clamp(min=1e-30)
    error = dataclasses.replace(layer.op, weight=layer.levelled(None) - layer.v).by_output()
    return layer.op.stored_as(error * steps.sqrt().reshape(-1, 1, 1, 1))


def _tiles(x: Tensor) -> list[Tensor]:
    """``(B, 3, H, W)`` cut into equal tiles: of `TILE` a side, or of 64."""
    side = 64 if x.shape[2] % TILE or x.shape[3] % TILE else TILE
    return [tile for rows in x.split(side, 2) for cut in rows.split(side, 3) for tile in cut.split(1)]


class _Flow:
    """A tile on its way through the float twin, and what errors of each network's output cost."""

    def __init__(self, base: Twin, gains: Tensor, lambda_: float) -> None:
        self.base, self.gains, self.lambda_ = base, gains, lambda_
        self.bits = self.squares = 0.0
        self.latents: list[Tensor] = []
        self._z_hat = self._y_hat = torch.empty(0)

    def through(self, part: str, tile: Tensor) -> tuple[Tensor, Tensor]:
        """The output of one segment, and the roots of what its squared errors cost in bits."""
        base = self.base
        if part == "analysis":
            out = base.run(part, tile)
            self.latents.append(out.detach())
            with torch.no_grad():
                self._y_hat, bits_y, bits_z = base.latents(out)
            self.bits += float(bits_y + bits_z)
            return out, self._root(part, base.unit, self.lambda_ / 3)
        if part == "hyper_analysis":
            out = base.run(part, self.latents[-1])
            self._z_hat = base.hyper_symbols(out.detach())[1]
            return out, self._root(part, 2.0**Z_FRACTION_BITS)
        if part == "parameters":
            prior = base.integer.prior
            scales, means = prior.all_parameters(base.run, prior.begin(base.run, self._z_hat), self._y_hat)
            root = self._root(
                part, base.unit, scales=scales.detach() / base.unit, has_means=means is not None
            )
            return scales if means is None else torch.cat([scales, means], 1), root
        out = base.run(part, self._y_hat)
        self.squares += float((out.detach() - tile).square().sum())
        return out, self._root(part, 1.0, self.lambda_ / 3)

    def _root(
        self,
        part: str,
        unit: float,
        price: float = 1.0,
        scales: Tensor | None = None,
        has_means: bool = False,
    ) -> Tensor:
        """``unit``: integers of the output that one is; ``price``: in bits, of the segment's own unit."""
        return (price * output_costs(part, self.gains, scales, has_means)).sqrt() / unit
