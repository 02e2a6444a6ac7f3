"""CompressAI's models as they are, beside ours: an oracle that is optional."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch

from rdquant.train.loop import initialise

GROUPS = [8, 8, 16, 16]
#: architecture -> CompressAI's class and its arguments, N = 32 and M = 48 where it takes them
MODELS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "bmshj2018-factorized": ("google.FactorizedPrior", (32, 48)),
    "bmshj2018-factorized-relu": ("google.FactorizedPriorReLU", (32, 48)),
    "bmshj2018-hyperprior": ("google.ScaleHyperprior", (32, 48)),
    "mbt2018-mean": ("google.MeanScaleHyperprior", (32, 48)),
    "mbt2018": ("google.JointAutoregressiveHierarchicalPriors", (32, 48)),
    "cheng2020-anchor": ("waseda.Cheng2020Anchor", (32,)),
    "cheng2020-attn": ("waseda.Cheng2020Attention", (32,)),
    "elic2022-official": ("sensetime.Elic2022Official", (32, 48, GROUPS)),
    "elic2022-chandelier": ("sensetime.Elic2022Chandelier", (32, 48, GROUPS)),
}


def compressai(module: str) -> types.ModuleType:
    """One of CompressAI's modules; skips the test where it is not installed."""
    if "torchvision" not in sys.modules:  # it takes no more of that than the name of a module
        vision, transforms = types.ModuleType("torchvision"), types.ModuleType("torchvision.transforms")
        vision.transforms = transforms  # type: ignore[attr-defined]
        sys.modules.update({"torchvision": vision, "torchvision.transforms": transforms})
    return pytest.importorskip(f"compressai.{module}")


def compressai_model(architecture: str) -> torch.nn.Module:
    """CompressAI's model with weights that are the same each time, lively latents and kernels of GDN that mix
    channels; skips the test without CompressAI.
    """
    models = compressai("models")
    path, arguments = MODELS[architecture]
    module, name = path.split(".")
    torch.manual_seed(0)
    model = getattr(getattr(models, module), name)(*arguments).eval()
    initialise(model)
    strided = [m for m in model.g_a.modules() if isinstance(m, torch.nn.Conv2d) and m.stride == (2, 2)]
    with torch.no_grad():
        strided[-1].weight.mul_(10)
        for parameter, p in model.named_parameters():
            if parameter.endswith("gamma"):
                p.add_(0.05 * torch.rand_like(p))
    model.update()
    return model
