"""Residual streams in a basis that few bits suit, at no cost.

All that a residual stream is written by, and all that reads it, are often convolutions, with sums between:
then any invertible T can go into the weights of the writers, and its inverse into those of the readers, and
the network stays the same function. Rotations of this kind are what QuaRot (Ashkboos et al. 2024, arXiv
2404.00456) and SpinQuant (Liu et al. 2024, arXiv 2405.16406) do to language models. Here one T for each
stream is learned for what rounding to 8 bits costs on all its edges together, as `rdquant.passes.mixing`
does behind a GDN, where T needs a convolution of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..codec import Codec
from ..graph import Graph, Node
from ..graph.operations import Convolution, Shuffle, Sum, Unshuffle
from ..pixels import pad_to, to_batch
from ..quality import at_spread
from .config import WIDE_BITS, QuantizeConfig
from .ends import for_codec
from .flow import through
from .mixed import is_mixing
from .mixing import Progress, Samples, learn_matrix, most_energy

#: positions kept of each edge and picture, those of most energy
KEPT = 256
#: of these, how many the search begins with
FIRST = 12
#: gradient steps of a round of the search
STEPS = 100


@dataclass(frozen=True)
class Stream:
    """Edges that sums tie together. ``writers``, ``readers``: convolutions by name, and by how many
    positions a channel of the stream is spread over their channels (a shuffle between them).
    """

    edges: tuple[str, ...]
    writers: Mapping[str, int]
    readers: Mapping[tuple[str, str], int]  #: (edge, convolution)

    @property
    def name(self) -> str:
        """The first edge's, which names the stream."""
        return self.edges[0]


def _ungrouped(node: Node) -> bool:
    return isinstance(node.op, Convolution) and node.op.groups == 1 and not is_mixing(node.name)


def _writer(graph: Graph, edge: str) -> tuple[str, int] | None:
    """The convolution that writes ``edge``, if one does, and nothing but this edge reads it."""
    node, square = graph[edge], 1
    if isinstance(node.op, Shuffle):
        (inner,) = node.inputs
        if inner in graph.inputs or inner == graph.output or len(graph.readers(inner)) != 1:
            return None
        square = node.op.factor**2
        node = graph[inner]
    return (node.name, square) if _ungrouped(node) else None


def _readers(graph: Graph, edge: str) -> Iterator[tuple[Node, int]]:
    """All that reads ``edge``, through unshuffles."""
    for node in graph.readers(edge):
        if isinstance(node.op, Unshuffle) and node.name != graph.output:
            yield from ((n, node.op.factor**2) for n in graph.readers(node.name))
        else:
            yield node, 1


def streams(graph: Graph) -> list[Stream]:
    """The streams of a network that any matrix can go into."""
    tied: dict[str, set[str]] = {}
    for node in graph.nodes:
        if isinstance(node.op, Sum):
            joined = set[str]().union(*(tied.get(e, {e}) for e in (node.name, *node.inputs)))
            tied.update(dict.fromkeys(joined, joined))
    found = []
    for edges in {id(s): s for s in tied.values()}.values():
        if graph.output in edges or not edges.isdisjoint(graph.inputs):
            continue
        if stream := _stream(graph, [n for n in graph.names() if n in edges]):
            found.append(stream)
    return found


def _stream(graph: Graph, edges: list[str]) -> Stream | None:
    writers: dict[str, int] = {}
    readers: dict[tuple[str, str], int] = {}
    for edge in edges:
        if not isinstance(graph[edge].op, Sum):
            if (writer := _writer(graph, edge)) is None:
                return None
            writers.update([writer])
        for node, square in _readers(graph, edge):
            if square == 1 and isinstance(node.op, Sum):
                continue
            if not _ungrouped(node):
                return None
            readers[edge, node.name] = square
    return Stream(tuple(edges), writers, readers)


def changed_basis(graph: Graph, stream: Stream, matrix: Tensor) -> Graph:
    """The same network with ``matrix: (C, C)`` float64 times what ``stream`` was on its edges."""
    ops: dict[str, Convolution] = {}

    def kernel(name: str) -> tuple[Convolution, Tensor]:
        op = ops.get(name, graph[name].op)
        assert isinstance(op, Convolution)
        return op, torch.as_tensor(op.by_output()).double()

    def put(name: str, op: Convolution, weight: Tensor, bias: Tensor) -> None:
        ops[name] = dataclasses.replace(op, weight=op.stored_as(weight.float()), bias=bias.float())

    channels, inverse = len(matrix), torch.linalg.inv(matrix)
    for name, square in stream.writers.items():
        op, w = kernel(name)
        written = torch.einsum("ij,jpokl->ipokl", matrix, w.reshape(channels, square, *w.shape[1:]))
        bias = matrix @ torch.as_tensor(op.bias).double().reshape(channels, square)
        put(name, op, written.reshape(w.shape), bias.flatten())
    for name, square in {name: square for (_, name), square in stream.readers.items()}.items():
        op, w = kernel(name)
        read = torch.einsum("ojpkl,ji->oipkl", w.reshape(len(w), channels, square, *w.shape[2:]), inverse)
        put(name, op, read.reshape(w.shape), torch.as_tensor(op.bias).double())
    return graph.replaced(ops)


def costs(graph: Graph, stream: Stream, sensitivities: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What an error on each edge costs where products read it, ``(C, C)`` float64."""
    found: dict[str, Tensor] = {}
    for (edge, name), square in stream.readers.items():
        op = graph[name].op
        assert isinstance(op, Convolution)
        w = torch.as_tensor(op.by_output()).double()
        taps = w.reshape(len(w), -1, square, *w.shape[2:]).flatten(2)  # (O, C, taps)
        cost = torch.einsum("oit,op,pjt->ij", taps, sensitivities[name], taps) / (square * op.down**2)
        found[edge] = found[edge] + cost if edge in found else cost
    return found


def find_streams(
    codec: Codec,
    pictures: list[np.ndarray],
    sensitivities: Mapping[str, Tensor],
    config: QuantizeConfig,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """A matrix for each stream that is rounded to few bits, by the stream's name.

    ``pictures``: ``(H, W, 3)`` uint8; ``sensitivities``: of outputs of convolutions, see
    `rdquant.passes.mixing`. Raises `CalibrationError`.
    """
    config = for_codec(config, codec)
    wanted: dict[str, tuple[Stream, dict[str, Tensor]]] = {}
    for network, graph in codec.networks.items() if config.mixing != "none" else ():
        for stream in streams(graph):
            if all(name in sensitivities for _, name in stream.readers):
                few = {
                    edge: cost
                    for edge, cost in costs(graph, stream, sensitivities).items()
                    if config.activation_bits_of(edge, network) < WIDE_BITS
                }
                if few:
                    wanted[stream.name] = stream, few
    watched = {edge for _, few in wanted.values() for edge in few}
    pools: dict[str, list[Tensor]] = {edge: [] for edge in watched}
    largest: dict[str, Tensor] = {}
    for i, pixels in enumerate(pictures if watched else []):
        if progress:
            progress(i, len(pictures), "streams")

        def note(network: str, node: Node, taken: tuple[Tensor, ...], out: Tensor) -> None:
            if node.name in watched:
                f = out[0].flatten(1)
                top = f.abs().amax(1)
                largest[node.name] = torch.maximum(largest.get(node.name, top), top)
                pools[node.name].append(most_energy(f, largest[node.name], KEPT))

        x = torch.from_numpy(to_batch(pad_to(pixels, codec.downsampling))).float().contiguous() / 255
        with torch.no_grad():
            through(at_spread(codec, i), x, note)
    found = {}
    for i, (name, (_, few)) in enumerate(wanted.items()):
        if progress:
            progress(i, len(wanted), f"stream {name}")
        samples = [Samples.of(pools[edge], cost, FIRST) for edge, cost in few.items()]
        try:
            found[name] = learn_matrix(samples, None, steps=config.mixing_steps or STEPS)
        except torch.linalg.LinAlgError:  # some directions do not matter at all
            continue
    return found


def insert_streams(
    codec: Codec, matrices: Mapping[str, Tensor], sensitivities: Mapping[str, Tensor]
) -> tuple[Codec, dict[str, Tensor]]:
    """The same float codec with ``matrices`` of `find_streams` in it, and sensitivities in the new bases."""
    networks, costs_now = dict(codec.networks), dict(sensitivities)
    for network, graph in codec.networks.items():
        for stream in streams(graph):
            if stream.name not in matrices:
                continue
            matrix = matrices[stream.name]
            networks[network] = changed_basis(networks[network], stream, matrix)
            inverse = torch.linalg.inv(matrix).contiguous()
            for name, square in stream.writers.items():
                if name in costs_now:
                    full = torch.kron(inverse, torch.eye(square, dtype=inverse.dtype))
                    costs_now[name] = full.T @ costs_now[name] @ full
    return dataclasses.replace(codec, networks=networks), costs_now
