"""The shortest way in: pictures to the bytes of files, and back."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from PIL import Image

from . import zoo
from .coder import ImageCoder, coded
from .errors import ImageError, UsageError
from .files.atomic import read_file
from .files.container import read
from .files.images import Colour, Picture, Reading, picture_of, read_picture
from .lazy import extras
from .load import coder_for, coder_of, open_coder
from .quality import check_target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .codec import Codec
    from .codecs.protocol import TrainedCodec
    from .measure import Curve, Point
    from .passes import QuantizeConfig
    from .study.evaluation import Evaluation

#: what a picture can be. Tensors of PyTorch are ``(3, H, W)`` uint8, on any device
AnyPicture = Any


@functools.lru_cache(maxsize=8)
def _kept(
    model: str | Path | Codec, saved: tuple[int, int] | None, quantizer: str | None, effort: int,
    quality: float | None,
) -> ImageCoder:  # fmt: skip
    return open_model(model, quantizer=quantizer, effort=effort, quality=quality)


def _opened(
    model: str | Path | Codec, quantizer: str | None = None, effort: int = 0, quality: float | None = None
) -> ImageCoder:
    """The model, open from the last picture on unless its file was saved anew."""
    saved = None
    if isinstance(model, str | Path):
        for name in (str(model), str(model).rpartition("@")[0]):
            if name and (path := Path(name)).is_file():
                saved = path.stat().st_mtime_ns, path.stat().st_size
                break
    return _kept(model, saved, quantizer, effort, quality)


@functools.lru_cache(maxsize=8)
def _named(fingerprint: bytes) -> ImageCoder:
    return coder_for(fingerprint)


def _is_tensor(picture: AnyPicture) -> bool:
    """Without importing PyTorch to ask."""
    return hasattr(picture, "detach")


def _batch(pictures: AnyPicture) -> list[AnyPicture] | None:
    """The pictures of a batch, or None for one picture. Raises `ImageError`."""
    if isinstance(pictures, list | tuple):
        return list(pictures)
    if getattr(pictures, "ndim", 3) != 4:
        return None
    if pictures.shape[1 if _is_tensor(pictures) else 3] != 3:
        raise ImageError(
            f"a batch is an array (B, H, W, 3), a tensor (B, 3, H, W) or a list, got {tuple(pictures.shape)}"
        )
    return list(pictures)


def _picture(picture: AnyPicture, reading: Reading) -> Picture:
    if isinstance(picture, Image.Image):
        return picture_of(picture, reading)
    if isinstance(picture, str | Path):
        return read_picture(Path(picture), reading)
    return Picture(_rgb(picture))


def _rgb(picture: AnyPicture) -> np.ndarray:
    """``(H, W, 3)`` uint8 of an array or a tensor. Raises `ImageError`."""
    tensor = _is_tensor(picture)
    if tensor:
        picture = picture.detach().cpu()
        picture = picture.double() if picture.is_floating_point() else picture
    found = np.asarray(picture)
    if found.ndim != 3 or found.shape[0 if tensor else 2] != 3 or not found.size:
        raise ImageError(f"a picture is an array (H, W, 3) or a tensor (3, H, W), got {found.shape}")
    if found.dtype.kind == "f":
        found = found.astype(np.float64)
        outside = found[~((found >= 0) & (found <= 1))]
        if outside.size:
            raise ImageError(f"floats of a picture are in [0, 1], got {outside[0]:g}; 0..255 is for uint8")
        found = np.floor(255 * found + 0.5).astype(np.uint8)
    if found.dtype != np.uint8:
        raise ImageError(f"samples of a picture are uint8, or floats in [0, 1], got {found.dtype}")
    return np.moveaxis(found, 0, -1) if tensor else found


@overload
def encode(
    picture: np.ndarray | Image.Image | str | Path, model: str | Path | Codec = ..., *,
    quality: float | None = ..., quantizer: str | None = ..., effort: int = ..., colour: Colour = ...,
    background: str | None = ..., exif: bool = ..., target_bpp: float | None = ...,
    target_size: int | None = ...,
) -> bytes: ...  # fmt: skip
@overload
def encode(
    picture: list[Any] | tuple[Any, ...], model: str | Path | Codec = ..., *, quality: float | None = ...,
    quantizer: str | None = ..., effort: int = ..., colour: Colour = ..., background: str | None = ...,
    exif: bool = ..., target_bpp: float | None = ..., target_size: int | None = ...,
) -> list[bytes]: ...  # fmt: skip
@overload
def encode(
    picture: AnyPicture, model: str | Path | Codec = ..., *, quality: float | None = ...,
    quantizer: str | None = ..., effort: int = ..., colour: Colour = ..., background: str | None = ...,
    exif: bool = ..., target_bpp: float | None = ..., target_size: int | None = ...,
) -> Any: ...  # fmt: skip
def encode(
    picture: AnyPicture,
    model: str | Path | Codec = zoo.DEFAULT,
    *,
    quality: float | None = None,
    quantizer: str | None = None,
    effort: int = 0,
    colour: Colour = "keep",
    background: str | None = None,
    exif: bool = False,
    target_bpp: float | None = None,
    target_size: int | None = None,
) -> bytes | list[bytes]:
    """A whole ``.rdq`` file of one picture; of a batch, a list of them.

    ::

        data = rdquant.encode("photo.jpg")
        data = rdquant.encode(array, "mine.rdqm", effort=2)
        files = rdquant.encode([first, second], quality=60)
        data = rdquant.encode("photo.jpg", target_size=30_000)

    ``picture``: an array ``(H, W, 3)`` of any size or a tensor ``(3, H, W)``, uint8 or floats in [0, 1] that
    are rounded to 8 bits; a Pillow image, or the path of a file. A list or tuple of these, ``(B, H, W, 3)``
    or a tensor ``(B, 3, H, W)`` is a batch.
    ``model``: a zoo name, a file, or a codec in memory (of `quantize`). ``quality``: 1..100, of models for
    many rates; or the highest of at most ``target_bpp`` bits a pixel, or ``target_size`` bytes a file.
    ``quantizer``, ``effort``: see `rdquant.load.open_coder`. Models stay open for the next picture.
    ``colour``, ``background``, ``exif``: what becomes of images and files that are not plain sRGB, see
    `rdquant.files.images.Reading`; their orientation is applied.

    Raises `ImageError` for pictures that have no one answer (transparent, CMYK) or another shape or type,
    `UnknownModel`, and `UsageError`.
    """
    check_target(quality, target_bpp, target_size)
    reading = Reading(colour, background, exif)
    coder = _opened(model, quantizer, effort, quality)

    def one(picture: AnyPicture) -> bytes:
        found = _picture(picture, reading)
        return coded(coder, found.rgb, found.sections, target_bpp, target_size)

    batch = _batch(picture)
    return one(picture) if batch is None else [one(p) for p in batch]


@overload
def decode(data: bytes | str | Path, model: str | Path | Codec | None = ...) -> np.ndarray: ...
@overload
def decode(data: list[Any] | tuple[Any, ...], model: str | Path | Codec | None = ...) -> list[np.ndarray]: ...
def decode(data: Any, model: str | Path | Codec | None = None) -> np.ndarray | list[np.ndarray]:
    """``(H, W, 3)`` uint8 of the bytes of a file, or of its path: the same pixels on every machine.

    ::

        rgb = rdquant.decode("photo.rdq")
        image = PIL.Image.open("photo.rdq")  # with the colour profile and EXIF, if the file carries them

    A list or tuple gives a list. ``model``: a file, a zoo name or a codec in memory, where the zoo does not
    have the one that the file names.

    Raises an error of the `DecodeError` branch for anything but a whole file, `UnknownModel`, and
    `UsageError` for a path that cannot be read.
    """
    if isinstance(data, list | tuple):
        return [decode(d, model) for d in data]
    whole = read_file(Path(data)) if isinstance(data, str | Path) else bytes(data)
    coder = _opened(model) if model else _named(read(whole)[0].fingerprint)
    return coder.decode(whole)


def open_model(
    model: str | Path | Codec,
    *,
    quality: float | None = None,
    quantizer: str | None = None,
    step: float | None = None,
    effort: int = 0,
) -> ImageCoder:
    """`rdquant.open`: a coder for a model, to code many pictures or ask for more than `encode` offers.

    ::

        coder = rdquant.open("mean-scale-s-0130-w8a8")
        data = coder.encode(rgb)
        rgb = coder.decode(data)
        data = rdquant.open("mine.rdqm").encode_to_size(rgb, 40_000)  # of models for many rates

    ``model``: a zoo name (``rdquant zoo`` lists them; ``NAME@60`` names a quality too), the path of a float
    or integer model, or a codec in memory (of `quantize` or `capture`). ``quality``: 1..100, of models for
    many rates. ``quantizer``: "uniform", "rdoq", "tcq4" or "tcq8"; by default what the model was retrained
    for. ``step``: of TCQ, in steps of plain rounding. ``effort``: 0..3, how long an encoder refines levels.

    Raises `UnknownModel`, `BadModel`, and `UsageError` for options that the model cannot have.
    """
    if isinstance(model, str | Path):
        return open_coder(str(model), quantizer, step, effort, quality)
    coder = coder_of(model, quantizer, step, effort)
    return coder if quality is None else coder.at(quality)


@extras()
def quantize(
    codec: TrainedCodec | str | Path,
    pictures: str | Path | Sequence[AnyPicture],
    config: QuantizeConfig | None = None,
    *,
    count: int = 64,
    side: int = 256,
    lambda_: float | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Codec:
    """A float codec as exact integers: 8-bit weights and activations unless ``config`` says otherwise.

    ::

        integer = rdquant.quantize("checkpoint.pth.tar", "photographs/")
        rdquant.save_integer(integer, "mine.rdqm")
        data = rdquant.encode("photo.png", integer)  # or "mine.rdqm"

    ``codec``: a zoo name, a float model file, a CompressAI checkpoint, or an ``nn.Module`` of your own
    (docs/own-codec.md). ``pictures``: a folder, or a sequence of what `encode` takes: photographs like those
    to be coded, but none that you measure with. Of each of ``count`` spread over them, a centre crop of
    ``side`` shows what ranges activations have; 16 do, 64 are better. ``lambda_``: what the codec was trained
    with, if its file does not say it: weight of 255^2 MSE against bpp. The integers do not depend on it, for
    no gradients run here; RDOQ, trellises and effort need it. Below 6 bits, `rdquant quantize` does better.

    Raises `CalibrationError` for unusable pictures, `CaptureError` for a network with parts that have no
    integer form, `BadModel`, `UnknownModel`.
    """
    from .files.images import list_images
    from .passes import load_calibration
    from .passes import quantize as convert

    described: dict[str, Any] = {}
    if isinstance(codec, str | Path):
        codec, described = _float_codec(str(codec))
    if lambda_ is not None:
        if not lambda_ > 0:
            raise UsageError(f"lambda must be positive, got {lambda_}")
        described["lambda"] = lambda_
    if isinstance(pictures, str | Path):
        crops = load_calibration(list_images(Path(pictures)), count, side)
    else:
        chosen = (
            [pictures[i * len(pictures) // count] for i in range(count)]
            if len(pictures) > count
            else pictures
        )
        crops = [_centre(_picture(p, Reading(colour="ignore")).rgb, side) for p in chosen]
    return convert(codec, crops, config, described or None, progress)


def _centre(rgb: np.ndarray, side: int) -> np.ndarray:
    top, left = max(0, (rgb.shape[0] - side) // 2), max(0, (rgb.shape[1] - side) // 2)
    return rgb[top : top + side, left : left + side]


def _float_codec(name: str) -> tuple[TrainedCodec, dict[str, Any]]:
    """A codec by name or file, and what its model file says that an integer model should say too."""
    from .codecs.checkpoint import import_checkpoint
    from .errors import BadModel
    from .files.float_models import load_float
    from .files.model_file import model_description
    from .load import carried

    path = zoo.model_path(name)
    try:
        about = model_description(path)
    except BadModel:  # not of ours
        return import_checkpoint(path), {"parent": path.name}
    parent = name if zoo.find(name) else path.name
    return load_float(path), {"parent": parent, **carried(about)}


@extras()
def evaluate(
    models: str | Path | Codec | Sequence[str | Path | Codec],
    pictures: str | Path | Sequence[AnyPicture],
    *,
    name: str = "rdquant",
    quantizer: str | None = None,
    step: float | None = None,
    effort: int = 0,
    check: bool = True,
    progress: Callable[..., None] | None = None,
    run: str | Path | None = None,
    jobs: int | None = None,
    ray: str | None = None,
) -> Curve:
    """Rate, quality and time of real files, coded and decoded: a point for each model.

    ::

        curve = rdquant.evaluate(["mine-1.rdqm", "mine-2.rdqm", "mine-3.rdqm"], "kodak/")
        for point in curve.points:
            print(point.label, point.bpp, point.psnr, point.interval("psnr"))
        curve.save("mine.json")  # for `rdquant bdrate` and `rdquant report`

    ``models``: as for `open`; qualities of one model are ``["mine.rdqm@20", "mine.rdqm@50", ...]``.
    ``pictures``: a folder of pictures or of shards, a shard (.tar as WebDataset's, .parquet), or a sequence
    of what `encode` takes. ``check``: decode twice, and raise `RoundTripError` if a file's pixels are not
    those of the codec's own forward pass. ``progress``: called with pictures done, and how many there are, of
    all models. ``run``: a folder that keeps the result of each picture or shard, so that the same call
    resumes. ``jobs``: processes, or ``ray``: address of a Ray cluster; then models and pictures are files,
    and seconds are of what ran beside others.

    bpp are 8 * bytes of the whole file / pixels; PSNR in dB over RGB; MS-SSIM of sides from 161 pixels on.
    Intervals are 95 %, by bootstrap over pictures. Raises as `open` does, and `ImageError`.
    """
    from .files.shards import pictures_at
    from .measure import Curve, Point, machine
    from .measure import evaluate as measured
    from .study.evaluation import Evaluation

    listed: list[Any] = list(models) if isinstance(models, list | tuple) else [models]
    if isinstance(pictures, str | Path):
        dataset, files = Path(pictures).name, pictures_at(Path(pictures))
    else:
        dataset, files = "pictures", [_named_picture(i, p) for i, p in enumerate(pictures)]  # type: ignore[misc]
    if not (run is None and jobs is None and ray is None):
        study = Evaluation(Path(run or "."), quantizer, step, effort, check)
        points = _by_cells(study, listed, files, run is not None, jobs, ray, progress)
        return Curve(name, dataset, points, {"machine": machine()})
    points, count = [], len(files)
    for i, model in enumerate(listed):
        coder = open_model(model, quantizer=quantizer, step=step, effort=effort)
        label = str(model) if isinstance(model, str | Path) else model.architecture

        def update(done: int, _: int, before: int = i * count) -> None:
            if progress:
                progress(before + done, count * len(listed))

        points.append(Point(label, coder.describe(), measured(coder, files, check, update)))
    return Curve(name, dataset, points, {"machine": machine()})


def _by_cells(
    study: Evaluation, models: list[Any], pictures: Any, stored: bool, jobs: int | None, ray: str | None,
    progress: Callable[..., None] | None,
) -> list[Point]:  # fmt: skip
    from .files.shards import ShardPictures
    from .measure import Point
    from .study.evaluation import evaluated

    files = pictures.paths if isinstance(pictures, ShardPictures) else pictures
    if not all(isinstance(p, str | Path) for p in (*models, *files)):
        raise UsageError("with run, jobs or ray, models and pictures must be files")
    names = [str(m) for m in models]
    with contextlib.ExitStack() as stack:
        if not stored:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            study = dataclasses.replace(study, folder=Path(folder))
        found = evaluated(study, names, files, jobs or (1 if ray is None else None), ray, progress)
    return [Point(n, study.coder(n).describe(), images) for n, images in zip(names, found, strict=True)]


def _named_picture(index: int, picture: AnyPicture) -> Path | tuple[str, np.ndarray]:
    if isinstance(picture, str | Path):
        return Path(picture)
    return f"{index:03}", _picture(picture, Reading(colour="ignore")).rgb
