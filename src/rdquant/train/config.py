"""What a training run is, as data."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..codecs import ARCHITECTURES, FloatCodec, build
from ..errors import UsageError

CONFIG_VERSION = 1


def check_choices(config: Any) -> None:
    """Raise `UsageError` for a field of a dataclass that is none of its `Literal`'s values."""
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal and getattr(config, name) not in get_args(hint):
            choices = ", ".join(get_args(hint))
            raise UsageError(f"{name} must be one of {choices}, got {getattr(config, name)!r}")


def check_weight_bits(bits: int | None) -> None:
    """Raise `UsageError` for a width that weights cannot be rounded to in training."""
    if bits is not None and not 2 <= bits <= 8:
        raise UsageError(f"weight_bits must be in 2..8, got {bits}")


@dataclass(frozen=True)
class TrainConfig:
    """One end-to-end training run. Round-trips through JSON; every field is a `rdquant train` option."""

    architecture: str = "mbt2018-mean"
    N: int = 64
    M: int = 96
    options: dict[str, Any] = field(default_factory=dict)
    """Of the architecture, beyond N and M."""
    lambda_: float = 0.013
    """Weight of distortion in ``lambda * 255^2 * MSE + bpp`` (CompressAI's convention). A codec of many rates
    does not ask: each picture of a batch has its own, of the codec's range."""
    rate_weight: float = 0.55
    """Of codecs of many rates: a picture's loss counts ``(lambda / 0.013) ** -rate_weight``; about what J
    itself is proportional to, so that each rate pulls with the same force."""
    start: Literal["random", "components"] = "random"
    """"components": transforms that compute principal components, see `rdquant.train.components`."""
    steps: int = 20_000
    batch: int = 8
    """Pictures per step and per process."""
    crop: int = 128
    """Side of the random training crops, a multiple of 64."""
    final_crop: int = 256
    """Side used in the last `final_fraction` of the steps (with the batch cut to a quarter)."""
    final_fraction: float = 0.0
    optimizer: Literal["adam", "muon"] = "adam"
    """"muon" orthogonalizes the update of each convolution (Jordan et al. 2024); the rest stays Adam."""
    lr: float = 2e-3
    lr_final: float = 1e-5
    edge_lr: float = 1.0
    """Rate of the kernels that were set by "components", in lr."""
    weight_decay: float = 0.0
    """Of Muon's kernels, a step by lr times this: its updates have one size, so that norms grow."""
    decay: Literal["cosine", "step"] = "cosine"
    """"cosine": from lr to lr_final over the run. "step": lr, then a tenth of it after 80 % of the steps."""
    warmup: int = 100
    aux_lr: float = 1e-3
    clip: float = 1.0
    """Largest gradient norm; larger gradients are scaled down."""
    ema: float = 0.999
    """Decay of the weight average that is evaluated and exported."""
    latent_mode: Literal["noise", "mixed", "switching", "quantized"] = "mixed"
    """"noise" everywhere; "mixed": noise for the rate, straight-through rounding for the synthesis;
    "switching": the same with the two quantizers of a trellis, switched at random, `quantizer_step` apart
    (hyperpriors only); "quantized": the levels that `quantizer` chooses, as in a file (see
    `rdquant.train.quantized`)."""
    quantizer: Literal["uniform", "rdoq", "tcq4", "tcq8"] = "uniform"
    """Of "quantized" latents."""
    quantizer_step: float | None = None
    """Of TCQ, in steps of plain rounding; default: `rdquant.latents.coding.TCQ_STEP`."""
    coherence: float | None = None
    """Of RDOQ and TCQ: how far errors of the latent count more than the synthesis gain says; default: that of
    the quantizer for codecs that were trained for plain rounding."""
    levels: Literal["online", "stored"] = "online"
    """"stored": levels as the hyper-coder that the run started from would have chosen them."""
    scope: Literal["all", "hyper", "decoder"] = "all"
    """Which parameters move: everything; all but the analysis; or only the synthesis."""
    weight_bits: int | None = None
    """Round every convolution's weights on the way through (`rdquant.train.rounded`)."""
    validate_every: int = 0
    """Steps from one measurement on the val split to the next; 0: none."""
    val_pictures: int = 32
    validation_lambdas: tuple[float, ...] = (0.0035, 0.013, 0.05)
    """Of codecs of many rates."""
    bf16: bool = True
    """Multiply in bfloat16, on devices that have instructions for it."""
    compile: bool = True
    seed: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        if self.lambda_ <= 0:
            raise UsageError(f"lambda must be positive, got {self.lambda_}")
        if self.latent_mode == "switching" and (self.quantizer_step is None or self.quantizer_step <= 0):
            raise UsageError(
                f"latent_mode switching needs a positive quantizer_step, got {self.quantizer_step}"
            )
        check_weight_bits(self.weight_bits)
        for name in ("crop", "final_crop"):
            side = getattr(self, name)
            if side < 64 or side % 64:
                raise UsageError(f"{name} must be a positive multiple of 64, got {side}")
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.final_fraction <= 1:
            raise UsageError(f"final_fraction must be in 0..1, got {self.final_fraction}")
        if not 0 <= self.ema < 1:
            raise UsageError(f"ema must be in [0, 1), got {self.ema}")

    def build(self) -> FloatCodec:
        """The codec with fresh weights. Raises `UsageError`."""
        cls = ARCHITECTURES.get(self.architecture, FloatCodec)
        widths: dict[str, Any] = {name: getattr(self, name) for name in ("N", "M") if name in cls.OPTIONS}
        return build(self.architecture, **{**widths, **self.options})

    def to_json(self) -> dict[str, Any]:
        return {"version": CONFIG_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrainConfig:
        fields = dict(data)
        version = fields.pop("version", None)
        if version != CONFIG_VERSION:
            raise UsageError(f"training config has version {version!r}, this release reads {CONFIG_VERSION}")
        unknown = set(fields) - {f.name for f in dataclasses.fields(cls)}
        if unknown:
            raise UsageError(f"unknown training option(s): {', '.join(sorted(unknown))}")
        if "validation_lambdas" in fields:
            fields["validation_lambdas"] = tuple(fields["validation_lambdas"])
        return cls(**fields)

    @classmethod
    def load(cls, path: Path) -> TrainConfig:
        return cls.from_json(json.loads(path.read_text()))
