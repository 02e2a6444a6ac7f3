"""Reading model files of version 4: chains of stages, each a convolution and what follows it.

A stage becomes two nodes of a graph, by renaming: tensors are stored the same way. Models keep the
fingerprint that version 4 gave them, so that pictures find them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..codec import Codec
from ..errors import BadModel
from ..latents import FIXED_HI, FIXED_LO
from .model_file import digest

PRIORS: dict[str, dict[str, Any]] = {
    "bmshj2018-factorized": {"kind": "factorized"},
    "bmshj2018-hyperprior": {"kind": "hyperprior", "means": False},
    "mbt2018-mean": {"kind": "hyperprior", "means": True},
}
#: network of a graph codec -> chain
CHAINS = {"analysis": "g_a", "synthesis": "g_s", "hyper_analysis": "h_a", "hyper_synthesis": "h_s"}
#: tensors of what follows a convolution
EPILOGUE = (
    "factor.m", "factor.shift", "negative.m", "negative.shift", "widen.m", "widen.shift", "gamma", "beta",
    "offset", "feedback",
)  # fmt: skip
LATENT_SHIFT = "latent_shift"
#: bits by which a latent channel may be scaled up before the synthesis
LATENT_SHIFT_LIMIT = 7
#: the mantissa of a power of two
ONE = 2**15


def _epilogue_name(chain: str, entry: dict[str, Any]) -> str:
    """That of the float network's next module if it is a nonlinearity."""
    stem, _, index = str(entry["name"]).rpartition(".")
    nonlinear = "gdn" in entry or entry.get("leaky") or (entry["out"][0] == 0 and chain != "g_s")
    if nonlinear and index.isdecimal():
        return f"{stem}.{int(index) + 1}"
    return f"{entry['name']}.out"


def _renamed(structure: dict[str, Any]) -> dict[str, str]:
    """Tensors of version 4 -> their names now, where these differ."""
    return {
        f"{entry['name']}.{part}": f"{_epilogue_name(chain, entry)}.{part}"
        for chain, entries in structure["stages"].items()
        for entry in entries
        for part in EPILOGUE
    }


def _nodes(chain: str, entries: list[dict[str, Any]], edge: str) -> list[dict[str, Any]]:
    nodes = []
    for entry in entries:
        (lo, hi), name = entry["out"], _epilogue_name(chain, entry)
        nodes.append({
            "name": entry["name"], "kind": "convolution", "inputs": [edge], "stride": entry["stride"],
            "padding": entry["shape"][2] // 2, "transposed": entry["transposed"], "groups": 1,
            "bits": entry["bits"], "shape": entry["shape"],
        })  # fmt: skip
        node = {"name": name, "inputs": [entry["name"]], "lo": lo, "hi": hi}
        if "gdn" in entry:
            node |= {"kind": "gdn", "inverse": entry["gdn"]["inverse"], "bits": entry["gdn"]["bits"]}
        elif entry.get("compensate"):
            node["kind"] = "compensate"
        else:
            node |= {"kind": "requantize", "absolute": False}
        nodes.append(node)
        edge = name
    return nodes


def _latent_shift(structure: dict[str, Any], tensors: dict[str, np.ndarray]) -> np.ndarray:
    """Left shifts of y_hat's channels before the synthesis."""
    shift = tensors[LATENT_SHIFT].astype(np.int64)
    if shift.shape != (structure["M"],) or int(shift.min()) < 0 or int(shift.max()) > LATENT_SHIFT_LIMIT:
        raise BadModel(f"latent_shift must be {structure['M']} of 0..{LATENT_SHIFT_LIMIT}")
    return shift


def translate(
    structure: dict[str, Any], tensors: dict[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Structure and stored tensors of version 4 -> those of version 5.

    Raises `BadModel`, or what a structure of the wrong types leads to.
    """
    architecture, hyper, means = structure["architecture"], "hyper_input" in structure, structure["has_means"]
    prior = PRIORS.get(architecture)
    if prior is None:
        raise BadModel(f"unknown architecture {architecture!r}")
    if (prior["kind"] == "hyperprior") != hyper or prior.get("means", False) is not means:
        raise BadModel(f"{architecture} with hyper_input {hyper} and has_means {means!r}")
    if unknown := structure["stages"].keys() - set(CHAINS.values()):
        raise BadModel(f"networks must be {sorted(CHAINS.values())}, got {sorted(unknown)}")
    renamed, shift = _renamed(structure), _latent_shift(structure, tensors)
    out = {renamed.get(k, k): t for k, t in tensors.items() if k != LATENT_SHIFT}
    networks: dict[str, Any] = {}
    for name, chain in CHAINS.items():
        if chain not in structure["stages"]:
            continue
        entries = structure["stages"][chain]
        (lo, hi), shape = entries[0]["in"], entries[0]["shape"]
        source = edge = {"g_a": "x", "g_s": "y_hat", "h_a": "y", "h_s": "z"}[chain]
        first: list[dict[str, Any]] = []
        if chain == "h_a":
            (into_lo, into_hi), (lo, hi) = structure["hyper_input"], (FIXED_LO, FIXED_HI)
            first = [{"name": "hyper_input", "lo": into_lo, "hi": into_hi, "absolute": not means}]
        elif chain == "g_s" and bool(shift.any()):
            first = [{"name": LATENT_SHIFT, "lo": FIXED_LO, "hi": FIXED_HI, "absolute": False}]
            out[f"{LATENT_SHIFT}.factor.m"] = np.full(shift.shape, ONE)
            out[f"{LATENT_SHIFT}.factor.shift"] = 15 - shift
        for node in first:
            node |= {"kind": "requantize", "inputs": [source]}
            edge = node["name"]
        nodes = [*first, *_nodes(chain, entries, edge)]
        inputs = [[source, shape[0 if entries[0]["transposed"] else 1], lo, hi]]
        networks[name] = {"inputs": inputs, "output": nodes[-1]["name"], "nodes": nodes}
    found = {"architecture": architecture, "prior": prior, "networks": networks}
    return found | {"fraction_bits": structure["fraction_bits"]}, out


def check(structure: dict[str, Any], codec: Codec) -> None:
    """Raise `BadModel` unless what version 4 says of widths, ranges and rectifiers is so."""
    for network, graph in codec.networks.items():
        ports, chain = graph.ports(), CHAINS[network]
        for entry in structure["stages"][chain]:
            name, (lo, hi) = entry["name"], entry["in"]
            given = ports[graph[name].inputs[0]]
            if given.lo < lo or given.hi > hi:
                what = f"[{given.lo}, {given.hi}], was proven for [{lo}, {hi}]"
                raise BadModel(f"{name} is given {what}")
            negative = getattr(graph[_epilogue_name(chain, entry)].op, "negative", None)
            if (negative is not None) != bool(entry.get("leaky")):
                raise BadModel(f"{name} is leaky: {entry.get('leaky')!r}, and its tensors say otherwise")
    widths = {"N": structure["stages"]["g_a"][0]["shape"][0], "M": codec.M}
    for name, width in widths.items():
        if type(structure[name]) is not int or structure[name] != width:
            raise BadModel(f"{name} must be {width}, got {structure[name]!r}")


def fingerprint(structure: dict[str, Any], tensors: dict[str, np.ndarray], shift: np.ndarray) -> bytes:
    """What version 4 names a model, given the whole tensors by their names now."""
    names = {now: before for before, now in _renamed(structure).items()}
    found = {names.get(k, k): t for k, t in tensors.items() if not k.startswith(f"{LATENT_SHIFT}.")}
    return digest(structure, {k: t.astype(np.int64) for k, t in (found | {LATENT_SHIFT: shift}).items()})
