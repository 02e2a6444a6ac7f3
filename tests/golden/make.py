"""Writes the golden files: run by hand, once per format version, never to make a test pass.

    python tests/golden/make.py

Models and pictures here were written by the release that CHANGELOG.md names with them. Every later release
must decode them to the same pixels; `golden.json` has the SHA-256 of those. Existing files are not replaced.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from skimage.data import astronaut

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

if TYPE_CHECKING:
    from rdquant.codec import Codec
    from rdquant.coder import ImageCoder

#: model name -> architecture, options of QuantizeConfig; or handmade, its kind
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "factorized-w8": ("bmshj2018-factorized", {}),
    "hyperprior-w8": ("bmshj2018-hyperprior", {}),
    "mean-w8": ("mbt2018-mean", {}),
    "mean-w4": ("mbt2018-mean", {"weight_bits": 4, "layer_bits": {"g_a.0": 9, "h_s.2": 6, "g_s.2": 3}}),
    "mean-plain-w8": ("mbt2018-mean", {"mixing": "none", "granularity": "tensor"}),
    # large latents: fewer fraction bits, values that are clipped; and latents that are shifted before g_s
    "mean-loud-w8": ("mbt2018-mean", {"mixing": "none"}),
    "mean-shift-w8": ("mbt2018-mean", {"mixing": "none"}),
    "factorized-loud-w8": ("bmshj2018-factorized", {}),
    # from here on model files of version 5
    "mbt2018-w8": ("mbt2018", {}),
    "cheng-w8": ("cheng2020-attn", {}),
    "window-w8": ("window-attention", {}),
    # every operation, with the priors that have no small architecture
    "handmade-elic": ("handmade", {"kind": "elic"}),
    "handmade-groups": ("handmade", {"kind": "groups"}),
    "handmade-four-part": ("handmade", {"kind": "four_part"}),
    # one model for every rate
    "unshuffle-w8": ("unshuffle8", {}),
}
#: files of other quantizers: model -> (quantizer, step in units of y), for these pictures
TRELLIS = {
    "mean-w8": (("TCQ4", 166), ("TCQ8", 179)),
    "hyperprior-w8": (("TCQ8", 150),),
    "handmade-elic": (("TCQ8", 170),),
}
TRELLIS_PICTURES = ("1x1", "70x45", "96x128")
#: of models for many rates: quality of each picture
QUALITIES = {"1x1": 1.0, "70x45": 37.55, "96x128": 50.0, "noise": 100.0}
#: factor on the last weights of g_a, and so on the latents
LOUD = 5.0
#: picture name -> (top, left, height, width) in the astronaut
PICTURES = {
    "1x1": (80, 200, 1, 1),
    "70x45": (60, 190, 70, 45),
    "96x128": (300, 100, 96, 128),
    "noise": (0, 0, 64, 80),
}


def trellis_files() -> list[tuple[str, str, str, int]]:
    """``(model, picture, quantizer, step)`` of each."""
    return [(m, p, q, s) for m, kinds in TRELLIS.items() for q, s in kinds for p in TRELLIS_PICTURES]


def picture(name: str) -> np.ndarray:
    if name == "noise":  # black and white, as calibration has not seen it
        return np.random.default_rng(0).integers(0, 2, (*PICTURES[name][2:], 3), np.uint8) * np.uint8(255)
    top, left, height, width = PICTURES[name]
    return np.ascontiguousarray(astronaut()[top : top + height, left : left + width])


def encoded(coder: ImageCoder, name: str) -> bytes:
    if coder.quality is not None:
        coder = coder.at(QUALITIES[name])
    return coder.encode(picture(name), pixel_checksum=name == "70x45")


def sha256(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def make_model(architecture: str, options: dict[str, Any], name: str) -> Codec:
    import handmade
    from conftest import small_codec
    from rdquant.passes import QuantizeConfig, quantize

    photo = astronaut()
    if architecture == "handmade":
        codec = handmade.codec(options["kind"], photo[:128, 128:256])
        codec.description["latent_gains"] = [1e4] * codec.M
        return codec
    parent = small_codec(architecture)
    if "loud" in name:
        parent.g_a[-1].weight.data *= LOUD
        parent.g_s[0].weight.data /= LOUD
    if "shift" in name:
        parent.g_s[0].weight.data *= torch.logspace(0, -2, parent.M).reshape(-1, 1, 1, 1)
    if architecture == "unshuffle8":
        parent.gain.log_gain.data = torch.linspace(-1, 1, 8)[:, None] + torch.linspace(0, 0.5, parent.M)
        parent.inverse_gain.log_gain.data = -parent.gain.log_gain.data
    return quantize(parent, [photo[:128, :128], photo[128:256, 128:256]], QuantizeConfig(**options))


def main() -> None:
    from rdquant.files.container import Quantizer
    from rdquant.files.integer_models import save_integer
    from rdquant.latents.coding import TrellisCoding
    from rdquant.load import open_coder

    index = HERE / "golden.json"
    known: dict[str, str] = json.loads(index.read_text()) if index.exists() else {}
    for model, (architecture, options) in MODELS.items():
        path = HERE / f"{model}.rdqm"
        if not path.exists():
            save_integer(make_model(architecture, options, model), path)
        coder = open_coder(str(path))
        for name in PICTURES:
            if f"{model}-{name}" not in known:
                data = encoded(coder, name)
                (HERE / f"{model}-{name}.rdq").write_bytes(data)
                known[f"{model}-{name}"] = sha256(coder.decode(data))
    for model, name, kind, step in trellis_files():
        coder = open_coder(str(HERE / f"{model}.rdqm"))
        gains = np.array(coder.codec.description["latent_gains"])
        coder.coding = TrellisCoding(Quantizer[kind], step, gains, 0.01)
        stem = f"{model}-{name}-{kind.lower()}"
        if stem not in known:
            data = coder.encode(picture(name), pixel_checksum=name == "70x45")
            (HERE / f"{stem}.rdq").write_bytes(data)
            known[stem] = sha256(coder.decode(data))
    index.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
