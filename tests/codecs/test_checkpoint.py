from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from conftest import small_codec
from rdquant.codecs.checkpoint import identify, import_checkpoint
from rdquant.errors import BadModel, UnknownModel


def _compressai_state(architecture: str) -> dict[str, torch.Tensor]:
    """Our tensors, with the derived buffers that a CompressAI checkpoint also carries."""
    state = dict(small_codec(architecture, N=6, M=10).state_dict())
    state["entropy_bottleneck._quantized_cdf"] = torch.zeros(3, 4, dtype=torch.int32)
    state["entropy_bottleneck._offset"] = torch.zeros(3, dtype=torch.int32)
    state["entropy_bottleneck.target"] = torch.zeros(3)
    state["g_a.1.beta_reparam.lower_bound.bound"] = torch.zeros(1)
    state["gaussian_conditional.scale_table"] = torch.zeros(64)
    state["context_prediction.mask"] = torch.zeros(3)
    return state


#: that keep their names; `test_compressai` has all of them
SAME_NAMES = (
    "bmshj2018-factorized", "bmshj2018-factorized-relu", "bmshj2018-hyperprior", "mbt2018-mean", "mbt2018",
    "cheng2020-attn",
)  # fmt: skip


@pytest.mark.parametrize("architecture", SAME_NAMES)
@pytest.mark.parametrize("form", ["bare", "wrapped", "module", "old names", "list names", "safetensors"])
def test_finds_architecture_and_widths(architecture: str, form: str, tmp_path: Path) -> None:
    state = _compressai_state(architecture)
    saved: object = state
    path = tmp_path / "c.pth.tar"
    if form == "wrapped":
        saved = {"epoch": 3, "state_dict": state, "loss": 0.1}
    elif form == "module":
        saved = {"state_dict": {f"module.{k}": v for k, v in state.items()}}
    elif form == "old names":
        renames = {"_matrix": "_matrices.", "_bias": "_biases.", "_factor": "_factors."}
        saved = {_renamed(k, renames): v for k, v in state.items()}
    elif form == "list names":
        renames = {"_matrix": "matrices.", "_bias": "biases.", "_factor": "factors."}
        saved = {_renamed(k, renames): v for k, v in state.items()}
    if form == "safetensors":
        path = tmp_path / "c.safetensors"
        save_file({k: v.contiguous() for k, v in state.items()}, str(path))
    else:
        torch.save(saved, path)
    codec = import_checkpoint(path)
    assert (codec.architecture, codec.N, codec.M) == (architecture, 6, 6 if "cheng" in architecture else 10)
    expected = small_codec(architecture, N=6, M=10).state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in codec.state_dict().items())


def _renamed(key: str, renames: dict[str, str]) -> str:
    prefix = "entropy_bottleneck."
    for a, b in renames.items():
        if key.startswith(prefix + a):
            return key.replace(a, b, 1)
    return key


class _Exploit:
    def __reduce__(self) -> tuple:
        return os.system, ("touch exploited",)


def test_pickled_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": _Exploit()}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(_Exploit()))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(BadModel, match=r"posix\.system|damaged") as refused:
            import_checkpoint(tmp_path / name)
        assert "weights_only" not in str(refused.value)
    assert not (tmp_path / "exploited").exists()


def test_clear_errors(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    with pytest.raises(UnknownModel, match="no such checkpoint"):
        import_checkpoint(path)
    path.write_text("no checkpoint at all")
    with pytest.raises(BadModel, match="not a checkpoint of PyTorch"):
        import_checkpoint(path)
    state = _compressai_state("mbt2018-mean")
    for change, message in (
        ({"context_prediction.weight": torch.zeros(1)}, r"context_prediction.weight is \(1,\)"),
        ({"g_s.0.bias": torch.zeros(3)}, r"g_s.0.bias is \(3,\)"),
        ({"g_s.0.bias": torch.full((6,), torch.nan)}, "not finite"),
        ({"extra.weight": torch.zeros(1)}, "extra.weight"),
    ):
        torch.save({**state, **change}, path)
        with pytest.raises(BadModel, match=message):
            import_checkpoint(path)
    del state["h_a.0.weight"]
    torch.save(state, path)
    with pytest.raises(BadModel, match=r"h_a\.0\.weight is missing"):
        import_checkpoint(path)
    with pytest.raises(BadModel, match="no architecture"):
        identify({"conv.weight": torch.zeros(1)})
