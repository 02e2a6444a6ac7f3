"""Every network of a float codec lowered, and a codec put together from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..codec import Z_FRACTION_BITS, Codec
from ..entropy import scale_boundaries, scale_table, scale_thresholds
from ..errors import UsageError
from ..graph import Graph
from ..latents import FIXED_HI, FIXED_LO, FixedPointScalar
from .calibration import Calibration
from .config import QuantizeConfig
from .ends import for_codec
from .flow import networks_in_order
from .latent_range import fraction_bits_of
from .lower import WIDE, Lowering
from .mixed import is_mixing
from .ranges import ActivationFormat


def _wide_readers(codec: Codec, network: str) -> bool:
    """Whether another network reads the features of ``network`` other than by products."""
    for name, sources in codec.prior.networks.items():
        for edge, source in zip(codec.networks[name].inputs, sources, strict=True):
            if source == network:
                blank = Lowering(name, codec.networks[name], {}, None, Calibration(), QuantizeConfig(), {})
                if WIDE in blank.demands()[edge]:
                    return True
    return False


def to_integer(
    codec: Codec,
    seen: Calibration,
    config: QuantizeConfig,
    description: dict[str, Any] | None = None,
    stretch: Mapping[str, Any] | None = None,
) -> tuple[Codec, dict[str, Tensor]]:
    """The integer codec, checked against the contract, and weights and gammas before rounding, by node.

    ``codec`` and ``seen`` come from `rdquant.passes.prepare`. ``stretch``: by edge, a factor (or one per
    channel) on the activation scales that the range rule gives, and by ``NAME.weight`` on those of a layer's
    weights, see `rdquant.passes.grid`. Raises
    `BadModel` or `CalibrationError`, and `UsageError` for bits given to a layer that does not exist.
    """
    config = for_codec(config, codec)
    layers = {n for n in seen.grams if not is_mixing(n)}
    edges = {*seen.tensors, *layers}
    for named, possible in ((config.layer_bits, layers), (config.layer_activation_bits, edges)):
        if unknown := sorted(set(named) - possible):
            raise UsageError(f"no layer {', '.join(unknown)}; the codec has {', '.join(sorted(possible))}")
    fraction_bits = fraction_bits_of(seen.tensors["y"])
    unit = 2.0**-fraction_bits

    def fixed(scale: float, channels: int) -> ActivationFormat:
        return ActivationFormat.uniform(scale, FIXED_LO, FIXED_HI, channels)

    prior, pixels = codec.prior, ActivationFormat.uniform(1 / 255, 0, 255, 3)
    outputs = prior.outputs(codec.M)
    sources = {"analysis": ("x",), **prior.networks, "synthesis": ("y_hat",)}
    known = {"x": pixels, "y": fixed(unit, codec.M), "y_hat": fixed(unit, codec.M)}
    if prior.hyper:
        known["z"] = fixed(2.0**-Z_FRACTION_BITS, len(codec.medians))
    ends = {"analysis": known["y"], "synthesis": pixels, "hyper_analysis": known.get("z")}
    networks: dict[str, Graph] = {}
    unrounded: dict[str, Tensor] = {}
    for name in networks_in_order(codec):
        graph = codec.networks[name]
        given = {}
        for (edge, port), source in zip(graph.inputs.items(), sources[name], strict=True):
            found = known[source]
            given[edge] = found.of_channels(torch.arange(port.channels)) if source == "y_hat" else found
        end = ends.get(name)
        if name in outputs:
            end = fixed(unit, graph.channels()[graph.output])
        wide = end is None and _wide_readers(codec, name)
        lowering = Lowering(name, graph, given, end, seen, config, stretch or {}, wide, unrounded)
        networks[name], known[name] = lowering.run()
    gains = {} if seen.gains is None else {"latent_gains": [float(f"{g:.4g}") for g in seen.gains]}
    factorized_bits = Z_FRACTION_BITS if prior.hyper else fraction_bits
    medians = np.round(codec.medians * np.float32(2**factorized_bits))
    thresholds = scale_thresholds(scale_boundaries(scale_table()), fraction_bits) if prior.hyper else None
    integer = Codec(
        codec.architecture, networks, prior, codec.y_tables, codec.z_tables, thresholds,
        medians.clip(FIXED_LO, FIXED_HI).astype(np.int32), FixedPointScalar(fraction_bits),
        {"quantize": config.to_json(), **gains, **(description or {})},
    )  # fmt: skip
    integer.check()
    return integer, unrounded
