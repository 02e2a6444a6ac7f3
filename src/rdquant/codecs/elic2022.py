"""Uneven channel groups with checkerboards (ELIC, He et al. 2022), CompressAI's `elic2022-official` and
`elic2022-chandelier` (after Chandelier's reimplementation: fewer groups are seen, wider parameter networks).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..priors import ChannelGroups
from .base import FloatCodec
from .blocks import AttentionBlock, ResidualBottleneckBlock
from .bottleneck import EntropyBottleneck
from .layers import Joined, MaskedConv2d, conv, conv1, deconv

#: CompressAI's names -> those of the prior's networks
_RENAMES = (
    (r"^latent_codec\.hyper\.", ""),
    (r"^latent_codec\.y\.channel_context\.y(\d+)\.", r"channel_context_\1."),
    (r"^latent_codec\.y\.latent_codec\.y(\d+)\.context_prediction\.", r"spatial_context_\1."),
    (r"^latent_codec\.y\.latent_codec\.y(\d+)\.entropy_parameters\.", r"parameters_\1."),
)
_SPATIAL = re.compile(r"^latent_codec\.y\.latent_codec\.y(\d+)\.context_prediction\.weight$")


def _blocks(N: int) -> list[nn.Module]:
    return [ResidualBottleneckBlock(N) for _ in range(3)]


class Elic2022(FloatCodec):
    """All groups before one are its channel context. ``groups``: their channels, M in all."""

    architecture = "elic2022-official"
    OPTIONS = ("N", "M", "groups")

    def __init__(self, N: int, M: int, groups: Sequence[int] | None = None) -> None:
        super().__init__()
        self.groups = list(groups) if groups is not None else [16, 16, 32, 64, M - 128]
        if min(self.groups) < 1 or sum(self.groups) != M:
            raise UsageError(f"groups must be positive and sum to M = {M}, got {self.groups}")
        self.N, self.M, self.prior = N, M, ChannelGroups(tuple(self.groups))
        self.g_a = nn.Sequential(
            conv(3, N), *_blocks(N),
            conv(N, N), *_blocks(N), AttentionBlock(N),
            conv(N, N), *_blocks(N),
            conv(N, M), AttentionBlock(M),
        )  # fmt: skip
        self.g_s = nn.Sequential(
            AttentionBlock(M), deconv(M, N), *_blocks(N),
            deconv(N, N), AttentionBlock(N), *_blocks(N),
            deconv(N, N), *_blocks(N),
            deconv(N, 3),
        )  # fmt: skip
        self.h_a = nn.Sequential(conv(M, N, 3, 1), nn.ReLU(), conv(N, N), nn.ReLU(), conv(N, N))
        last = self.last_of_hyper_synthesis()
        self.h_s = nn.Sequential(deconv(N, N), nn.ReLU(), deconv(N, N * 3 // 2), nn.ReLU(), last)
        self.entropy_bottleneck = EntropyBottleneck(N)
        for g, n in enumerate(self.groups):
            setattr(self, f"spatial_context_{g}", MaskedConv2d(n, 2 * n, checkerboard=True))
            if g:
                context = conv(self.seen_by(g), 224, 5, 1), nn.ReLU(), conv(224, 128, 5, 1), nn.ReLU()
                setattr(self, f"channel_context_{g}", self.channel_context(*context, conv(128, 2 * n, 5, 1)))
            widths = self.parameter_widths(2 * n * (2 if g else 1), 2 * n)
            layers = [layer for pair in itertools.pairwise(widths) for layer in (conv1(*pair), nn.ReLU())]
            setattr(self, f"parameters_{g}", Joined(*layers[:-1]))

    def last_of_hyper_synthesis(self) -> nn.Module:
        return deconv(self.N * 3 // 2, self.N * 2, 3, 1)

    def seen_by(self, group: int) -> int:
        """Channels of a group's channel context."""
        return sum(self.groups[:group])

    def channel_context(self, *layers: nn.Module) -> nn.Module:
        """The network over the groups before."""
        return nn.Sequential(*layers)

    def parameter_widths(self, contexts: int, outputs: int) -> list[int]:
        """Channels between the layers of a group's parameter network, first and last included."""
        first = contexts + 2 * self.N
        between = [max((3 * first + i * (outputs - first)) // 3, 2 * self.N) for i in (1, 2)]
        return [first, *between, outputs]

    @classmethod
    def identify(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
        n, m = tensors["g_a.0.weight"].shape[0], tensors["g_a.13.weight"].shape[0]
        groups = {int(found[1]): t.shape[1] for name, t in tensors.items() if (found := _SPATIAL.match(name))}
        transposed = tensors["latent_codec.hyper.h_s.4.weight"].shape[1] == 2 * n
        if not groups or transposed == issubclass(cls, Elic2022Chandelier):
            return None
        return {"N": n, "M": m, "groups": [groups[g] for g in sorted(groups)]}

    @classmethod
    def renamed(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, t in tensors.items():
            for pattern, ours in _RENAMES:
                name = re.sub(pattern, ours, name)
            found[name] = t
        return found


class _FirstAndLast(nn.Sequential):
    """A network over the first ``first`` channels and those from ``last`` on."""

    def __init__(self, first: int, last: int, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.first, self.last = first, last

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.cat([x[:, : self.first], x[:, self.last :]], 1))


class Elic2022Chandelier(Elic2022):
    """The first group and the one just before are a group's channel context."""

    architecture = "elic2022-chandelier"

    def last_of_hyper_synthesis(self) -> nn.Module:
        return conv(self.N * 3 // 2, self.M * 2, 3, 1)

    def seen_by(self, group: int) -> int:
        return self.groups[0] + (self.groups[group - 1] if group > 1 else 0)

    def channel_context(self, *layers: nn.Module) -> nn.Module:
        first = self.groups[0]
        seen = layers[0].in_channels
        assert isinstance(seen, int)
        return nn.Sequential(*layers) if seen == first else _FirstAndLast(first, first - seen, *layers)

    def parameter_widths(self, contexts: int, outputs: int) -> list[int]:
        return [contexts + 2 * self.M, 2 * self.M, 512, outputs]

    @classmethod
    def renamed(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """CompressAI has means before scales here."""
        found = super().renamed(tensors)
        for name, t in found.items():
            if re.match(r"^parameters_\d+\.4\.", name):
                found[name] = torch.cat(t.chunk(2)[::-1])
        return found
