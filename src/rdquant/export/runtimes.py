"""ONNX Runtime and OpenVINO as engines: an integer graph to a function of arrays.

They compute the same integers where they multiply integers, and floats in between, so that pixels agree with
ours but for some that are next to a rounding tie. What must be exact is never run here.

Where an x86 CPU has no better instruction (VNNI), both multiply bytes with one that adds pairs of products in
16 bits, which saturates: pixels are far off. There they are told to compute in float32.
"""

from __future__ import annotations

import functools
import io
import os
import platform
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal, get_args

import llvmlite.binding
import numpy as np

from ..engines.cache import per_graph
from ..errors import UsageError
from ..graph import Graph

Runtime = Literal["openvino", "onnx"]
#: what makes the pixels: "exact", ours, the same on every machine; "torch": ours in float32 and unrounded
#: (`rdquant.engines.approximate`); a `Runtime`; "auto": OpenVINO where it is installed, else exact
Synthesis = Literal["auto", "exact", "openvino", "onnx", "torch"]
SYNTHESES: tuple[Synthesis, ...] = get_args(Synthesis)
#: what has to be installed
PACKAGES = {"openvino": ("openvino", "onnx"), "onnx": ("onnxruntime", "onnx")}
#: sizes of pictures that OpenVINO keeps a compiled network of
KEPT_SIZES = 8

#: ``(1, C, H, W)`` integers of any type each -> the output's, uint8 or float32
Run = Callable[..., np.ndarray]


def _threads() -> int:
    """As the rest of the house; 0: as many as there are cores."""
    return int(os.environ.get("OMP_NUM_THREADS", "0") or 0)


@functools.cache
def products_saturate() -> bool:
    """Whether this machine is an x86 without VNNI."""
    features = llvmlite.binding.get_host_cpu_features()
    better = any(features.get(name, False) for name in ("avx512vnni", "avxvnni"))
    return platform.machine().lower() in ("x86_64", "amd64") and not better


def _in_onnxruntime(graph: Graph) -> Run:
    import onnxruntime

    from .model import onnx_model

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    options.log_severity_level = 3
    if products_saturate():
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    data = onnx_model(graph, "onnx").model.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"])
    kinds = {"tensor(uint8)": np.uint8, "tensor(int8)": np.int8, "tensor(float)": np.float32}
    types = {i.name: kinds[i.type] for i in session.get_inputs()}

    def run(*q: np.ndarray) -> np.ndarray:
        given = {n: np.ascontiguousarray(t, types[n]) for n, t in zip(types, q, strict=True)}
        return session.run(None, given)[0]

    return run


def _in_openvino(graph: Graph) -> Run:
    import openvino

    from .model import onnx_model

    core = openvino.Core()
    data = onnx_model(graph, "openvino").model.SerializeToString()
    # bfloat16, the default of some processors, is too coarse for 16-bit integers
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if products_saturate():
        options["LP_TRANSFORMS_MODE"] = False
    if _threads():
        options["INFERENCE_NUM_THREADS"] = _threads()
    compiled: dict[tuple[tuple[int, ...], ...], Any] = {}

    def run(*q: np.ndarray) -> np.ndarray:
        shapes = tuple(t.shape for t in q)
        if shapes not in compiled:
            if len(compiled) == KEPT_SIZES:
                del compiled[next(iter(compiled))]
            model = core.read_model(io.BytesIO(data))
            model.reshape({i.any_name: list(s) for i, s in zip(model.inputs, shapes, strict=True)})
            compiled[shapes] = core.compile_model(model, "CPU", options)
        network = compiled[shapes]
        kinds = [i.element_type.to_dtype() for i in network.inputs]
        given = [np.ascontiguousarray(t, kind) for t, kind in zip(q, kinds, strict=True)]
        return network(given)[0].copy()

    return run


def available(engine: str) -> bool:
    return all(find_spec(package) is not None for package in PACKAGES[engine])


def resolved(graph: Graph, engine: Synthesis) -> Synthesis:
    """What "auto" is for ``graph``. Raises `UsageError` for an unknown engine."""
    if engine not in SYNTHESES:
        raise UsageError(f"the engine must be one of {', '.join(SYNTHESES)}, got {engine!r}")
    if engine != "auto":
        return engine
    try:
        runner(graph, "openvino")
    except UsageError:
        return "exact"
    return "openvino"


@per_graph
def _runners(graph: Graph) -> dict[str, Run]:
    return {}


def runner(graph: Graph, engine: str) -> Run:
    """``graph`` in a `Runtime`, kept for as long as the graph is.

    Raises `UsageError` if the engine is not installed, or an operation has no form there.
    """
    if engine not in PACKAGES:
        raise UsageError(f"no engine {engine!r}; there are {', '.join(PACKAGES)}")
    if not available(engine):
        missing = " and ".join(PACKAGES[engine])
        raise UsageError(f"the engine {engine!r} needs {missing}: pip install 'rdquant[deploy]'")
    found = _runners(graph)
    if engine not in found:
        found[engine] = {"openvino": _in_openvino, "onnx": _in_onnxruntime}[engine](graph)
    return found[engine]
