"""More bits where a codec's structure asks for them: the ends of the transforms, and contexts.

The ends are the first and the last convolution of the transforms, and two kinds of sums.

What is rounded there goes straight into pixels or latents, with nothing behind it that has learned to live
with it, or has a latent's tails: most of what eight bits cost a codec of many rates came from one edge, the
input of its last layer, and half of what they cost a `cheng2020-anchor` from y_hat plus its first residual
branch. A sum that convolutions alone read is where a chain of residual blocks ends: all of what flows there
passes it (two of them were most of what the activations of that codec's analysis lost). Of a codec of many
rates, whose highest ones feel the least noise, the sums before it in the chain in front of a last layer have
more bits too, where products read them, and so have the weights of the branch that the last of them adds. A
mixing behind a GDN (`rdquant.passes.mixing`) mends the same where there is one, and such transforms keep
their widths at the ends.

Where parts of the latent are coded given others, what is rounded on the way to a scale or a mean is felt in
every part after it; so activations have `PRIOR_BITS` there.
"""

from __future__ import annotations

import dataclasses

from ..codec import Codec
from ..graph import Graph, Node
from ..graph.operations import Convolution, Gain, Shuffle, Sum, Unshuffle
from .config import WIDE_BITS, QuantizeConfig
from .mixed import is_mixing

#: more than the wanted bits, up to `WIDE_BITS`
MORE = 4
#: so many sums of a chain, before the one that ends it
BEFORE = 3
#: of activations on the entropy path of a prior with contexts
PRIOR_BITS = 12


def _ends(graph: Graph) -> list[Node]:
    """The first and the last convolution; none, if the last one reads a mixing."""
    found = [n for n in graph.nodes if isinstance(n.op, Convolution) and not is_mixing(n.name)]
    if not found or any(is_mixing(edge) for edge in found[-1].inputs):
        return []
    return [found[0], found[-1]]


def origin(graph: Graph, edge: str) -> str:
    """What an edge is, but for the places of its values."""
    while edge not in graph.inputs and isinstance(graph[edge].op, Shuffle | Unshuffle):
        (edge,) = graph[edge].inputs
    return edge


def _sums(graph: Graph, synthesis: bool) -> list[str]:
    """The sums that convolutions alone read, and of a synthesis those that take an input of the graph as it
    is, or times a gain."""
    latents = {*graph.inputs, *graph.names(Gain)} if synthesis else set()
    return [
        n.name
        for n in graph.nodes
        if isinstance(n.op, Sum)
        and (
            not latents.isdisjoint(n.inputs)
            or ((readers := graph.readers(n.name)) and all(isinstance(r.op, Convolution) for r in readers))
        )
    ]


def _before(graph: Graph, end: str) -> list[str]:
    """The sums that one goes on from, up to `BEFORE` of them."""
    found: list[str] = []
    sums = set(graph.names(Sum))
    while len(found) < BEFORE and (earlier := [edge for edge in graph[end].inputs if edge in sums]):
        end = earlier[0]
        found.append(end)
    return found


def _branches(graph: Graph, end: str) -> list[Node]:
    """The convolutions whose results a sum adds."""
    nodes = [graph[edge] for edge in graph[end].inputs if edge not in graph.inputs]
    return [node for node in nodes if isinstance(node.op, Convolution) and not is_mixing(node.name)]


def for_codec(config: QuantizeConfig, codec: Codec) -> QuantizeConfig:
    """``config`` with these bits in it; what it says itself stays."""
    if config.prior_activation_bits is None and codec.prior.has_contexts:
        wide = max(PRIOR_BITS, config.activation_bits)
        config = dataclasses.replace(config, prior_activation_bits=wide)
    if not config.wide_ends or config.mixing == "none":
        return config
    weights, activations = dict(config.layer_bits), dict(config.layer_activation_bits)
    for name in ("analysis", "synthesis"):
        graph = codec.networks[name]
        ends = _ends(graph)
        edges = [origin(graph, node.inputs[0]) for node in ends[1:]]
        chains = [edge for edge in edges if codec.gains and edge in graph.names(Sum)]
        for node in (*ends, *(branch for end in chains for branch in _branches(graph, end))):
            bits = config.bits_of(node.name, name)
            weights.setdefault(node.name, max(bits, min(bits + MORE, WIDE_BITS)))
        edges += _sums(graph, name == "synthesis")
        for edge in (*edges, *(earlier for end in chains for earlier in _before(graph, end))):
            bits = config.activation_bits_of(edge, name)
            if edge not in graph.inputs:
                activations.setdefault(edge, max(bits, min(bits + MORE, WIDE_BITS)))
    return dataclasses.replace(config, layer_bits=weights, layer_activation_bits=activations)
