"""A sensitivity table from one gradient: what each layer's own error will do, to second order.

Around a trained codec J rises with the squares of what quantization changes: lambda times the error of the
picture, of the latent times its synthesis gain, and the bits that wrong means and scales cost (see
`rdquant.weights.judges.Mismatch`). Under an error e of a layer's weights a network's output changes by
``J e``, J the Jacobian. For random signs s, and A the roots of what squared errors of the output cost, the
mean of ``(s^T A J e)^2`` is ``|A J e|^2``, and ``s^T A J`` is one backward pass: all widths of all layers of
the network are inner products with it. A measured table runs the codec for each of them.

The hyper-coder is so small that the rate with each width is measured all the same: rounding z is no matter of
second order. Left out: errors that meet in later layers, and the curvature of J, which wide errors feel.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from ..errors import CalibrationError
from ..integer import Z_FRACTION_BITS
from ..weights.config import is_mixing
from ..weights.mixing import output_costs
from ..weights.twin import Twin
from .sizes import LayerSizes
from .table import NOISE, SensitivityTable, WidthTwins

#: side of the tiles that have signs and a gradient of their own. Errors further apart hardly meet in a pixel,
#: and their products are but noise of the signs; more tiles, less noise
TILE = 128


def predict_table(
    twins: WidthTwins, x: Tensor, lambda_: float, sizes: LayerSizes, seed: int = 0
) -> SensitivityTable:
    """Predicted zetas of all layers and widths. ``x: (B, 3, H, W)`` of 0..255, sides multiples of 64.

    Counts as one evaluation: it takes each picture once through the codec, and back. Raises
    `CalibrationError` for twins that do not know the synthesis gain.
    """
    if twins.gains is None:
        raise CalibrationError("predicting sensitivities needs the synthesis gain: calibrate with `prepare`")
    start = time.perf_counter()
    widest = twins.twins[max(twins.twins)]
    stages = widest.names()
    names = [n for n in stages if not is_mixing(n)]
    widths = sorted(twins.twins)
    base = twins.mixed(dict.fromkeys(names, max(widths)), outputs=False)
    base.set_rounding(stages, False, False)
    errors = {n: torch.stack([weight_error(twins, n, b).flatten() for b in widths]) for n in names}
    squares = {n: torch.zeros(len(widths)) for n in names}
    generator = torch.Generator().manual_seed(seed)
    buffers = [base.stage(n).v.requires_grad_(True) for n in names]
    flow = _Flow(base, twins.gains, lambda_)
    try:
        for tile in _tiles(x):
            for part in base.order:
                out, root = flow.through(part, tile)
                own = [n for n in names if n.startswith(f"{part}.")]
                signs = torch.randint(0, 2, out.shape, generator=generator) * 2.0 - 1
                found = torch.autograd.grad(out, [base.stage(n).v for n in own], signs * root)
                for n, slope in zip(own, found, strict=True):
                    squares[n] += (errors[n] @ slope.flatten()).square()
    finally:
        for buffer in buffers:
            buffer.requires_grad_(False)
    total = flow.bits + lambda_ / 3 * flow.squares
    zeta = {n: {b: float(s) / total for b, s in zip(widths, squares[n], strict=True)} for n in names}
    latents = torch.cat(flow.latents)
    for name in (n for n in names if n.startswith("h_")):
        for b in widths:
            with twins.swapped(base, name, b), torch.no_grad():
                _, bits_y, bits_z = base.latents(latents)
            more = (float(bits_y + bits_z) - flow.bits) / total
            zeta[name][b] = max(zeta[name][b], more)
            if more < NOISE:  # and so will the wider ones be
                break
    j_float = total / (x.shape[0] * x.shape[2] * x.shape[3])
    return SensitivityTable(zeta, j_float, sizes, 1, time.perf_counter() - start)


@torch.no_grad()
def weight_error(twins: WidthTwins, name: str, bits: int) -> Tensor:
    """What a width does to a layer's weights, in units of the widest twin's steps: shaped as they are."""
    twin, reference = twins.twins[bits], twins.twins[max(twins.twins)].stage(name)
    stage = twin.stage(name)
    axes, shape = ((0, 2, 3), (1, -1, 1, 1)) if stage.transposed else ((1, 2, 3), (-1, 1, 1, 1))
    steps = reference.v.square().sum(axes) / stage.v.square().sum(axes).clamp(min=1e-30)
    return (stage.level_weight(twin.in_log(name)) - stage.v) * steps.sqrt().reshape(shape)


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
        """The output of one network, and the roots of what its squared errors cost in bits."""
        base = self.base
        if part == "g_a":
            out = base.run(part, tile)
            self.latents.append(out.detach())
            with torch.no_grad():
                self._y_hat, bits_y, bits_z = base.latents(out)
            self.bits += float(bits_y + bits_z)
            return out, self._root(part, base.unit, self.lambda_ / 3)
        if part == "h_a":
            out = base.run(part, base.hyper_input(self.latents[-1]))
            self._z_hat = base.hyper_symbols(out.detach())[1]
            return out, self._root(part, 2.0**Z_FRACTION_BITS)
        if part == "h_s":
            out = base.run(part, self._z_hat)
            scales = (out.chunk(2, 1)[0] if base.integer.has_means else out).detach() / base.unit
            return out, self._root(part, base.unit, scales=scales)
        out = base.run(part, self._y_hat)
        self.squares += float((out.detach() - tile).square().sum())
        return out, self._root(part, 1.0, self.lambda_ / 3)

    def _root(self, part: str, unit: float, price: float = 1.0, scales: Tensor | None = None) -> Tensor:
        """``unit``: integers of the output that one is; ``price``: in bits, of the network's own unit."""
        has_means = self.base.integer.has_means
        return (price * output_costs(part, self.gains, scales, has_means)).sqrt() / unit
