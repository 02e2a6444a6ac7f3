"""The command line: one thin command per verb. ``rdquant --help`` teaches."""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__, console, zoo
from .errors import RdquantError, UsageError

app = typer.Typer(
    help="Make a trained learned image codec shippable: integer, small, reproducible.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

#: what the zoo's index says of Kodak
MEASURED = ("bpp", "psnr", "ms_ssim")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Quantizer = Annotated[
    str | None,
    typer.Option(
        help="Latent levels: uniform (nearest), rdoq (by D + lambda R), tcq4 or tcq8 (trellis-coded). "
        "Default: what the model was retrained for, else uniform."
    ),
]
Step = Annotated[float | None, typer.Option(help="Of TCQ, in steps of plain rounding.")]
Effort = Annotated[
    int | None,
    typer.Option(
        help="0 to 3: rounds of refining levels for this picture (0, 4, 12, 32); the decoder is as fast. "
        "Default: 1 for models retrained for rdoq or tcq, else 0."
    ),
]
Model = Annotated[str, typer.Option("--model", "-m", help="A model file or a zoo name (`rdquant zoo`).")]


def _version(show: bool) -> None:
    if show:
        print(f"rdquant {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    pass


@app.command("zoo")
def zoo_command(as_json: Json = False) -> None:
    """List the models shipped with rdquant and their measured rate-distortion on Kodak."""
    index = zoo.index()
    if as_json:
        console.show_json(index)
        return
    columns = ("name", "kind", "lambda", "bpp", "PSNR dB", "MS-SSIM", "bytes", "fingerprint")
    rows = [
        (name, e["kind"], e["lambda"], *map(e["kodak"].get, MEASURED), e["bytes"], e["fingerprint"])
        for name, e in index.items()
    ]
    console.show_table("zoo (Kodak means, real files, effort 0)", columns, rows)


@app.command("import")
def import_command(
    checkpoint: Annotated[
        Path, typer.Argument(help="A CompressAI checkpoint: .pth, .pth.tar or .safetensors.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The model file to write.")],
    half: Annotated[bool, typer.Option(help="Store float16 instead of float32.")] = False,
) -> None:
    """Turn a CompressAI checkpoint into a model file. Nothing in it is executed."""
    from .codecs.checkpoint import import_checkpoint
    from .files.float_models import save_float

    codec = import_checkpoint(checkpoint)
    save_float(codec, out, {"imported": checkpoint.name}, half=half)
    console.say(f"{out}: {codec.architecture}, N={codec.N}, M={codec.M}")


@app.command()
def train(
    data: Annotated[
        Path, typer.Option(help="Folder of training pictures; a CSV with file,split is honoured.")
    ],
    run: Annotated[Path, typer.Option(help="Run folder; an existing one is resumed.")],
    lambda_: Annotated[float, typer.Option("--lambda", help="Weight of 255^2 * MSE against bpp.")] = 0.013,
    config: Annotated[
        Path | None, typer.Option(help="JSON with any training options; others override it.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any option of TrainConfig, as NAME=JSON.")
    ] = None,
    init: Annotated[Path | None, typer.Option(help="Float model file to start from.")] = None,
    steps: Annotated[int | None, typer.Option(help="Length of the run.")] = None,
) -> None:
    """Train a float codec, or resume the run in a folder. Under `torchrun`, data-parallel.

    Options: `--set` takes architecture, N, M, batch, crop, optimizer, lr, decay, ema, bf16, compile, ...
    """
    from .train import TrainConfig, Trainer

    stored = run / "config.json"
    if stored.exists() and config is None and not set_ and steps is None:
        options = TrainConfig.load(stored)
    else:
        fields: dict[str, Any] = {"lambda_": lambda_}
        if config is not None:
            fields.update(TrainConfig.load(config).to_json())
            fields.pop("version")
        if steps is not None:
            fields["steps"] = steps
        fields.update(_options(set_, (TrainConfig,))[TrainConfig])
        options = TrainConfig(**fields)
    trainer = Trainer(options, run, data, init)
    with console.progress(f"train lambda {options.lambda_:g}") as update:

        def report(step: int, line: dict[str, Any]) -> None:
            note = f"loss {line['loss']:.3f}  {line['bpp']:.3f} bpp  {line['psnr']:.2f} dB"
            update(step, options.steps, note)

        trainer.run(report)
    console.say(f"{run / 'model.safetensors'} after {trainer.step} steps, {trainer.seconds:.0f} s")


@app.command()
def retrain(
    model: Annotated[str, typer.Argument(help="A float model file or zoo name.")],
    data: Annotated[
        Path, typer.Option(help="Folder of training pictures; a CSV with file,split is honoured.")
    ],
    run: Annotated[Path, typer.Option(help="Run folder; an existing one is resumed.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The float model file to write.")],
    quantizer: Annotated[str, typer.Option(help="uniform, rdoq, tcq4 or tcq8.")] = "tcq8",
    step: Step = None,
    phases: Annotated[
        str, typer.Option(help="Of decoder (g_s), hyper (g_s, h_a, h_s, tables), all; in order.")
    ] = "decoder,hyper",
    steps: Annotated[int, typer.Option(help="Length of a phase.")] = 1500,
    levels: Annotated[
        str, typer.Option(help="online: searched anew in each step; stored: as when the phase began.")
    ] = "online",
    rounds: Annotated[int, typer.Option(help="How often to go through the phases.")] = 1,
    lambda_: Annotated[
        float | None, typer.Option("--lambda", help="Of J; default: what the model was trained with.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any other option of RetrainConfig, as NAME=JSON.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Retrain decoder and hyper-coder on the latents that the file's own quantizer produces.

    What the encoder's analysis computes stays as it is. The table shows J, rate and PSNR on the val split
    and how far the histogram of levels drifted; a phase that made J worse is undone. The model then encodes
    with that quantizer by default; `rdquant quantize` turns it into integers like any other.
    """
    from .load import model_path
    from .train.retrain import RetrainConfig
    from .train.retrain import retrain as work

    config = RetrainConfig(
        **{
            "quantizer": quantizer, "step": step, "phases": tuple(phases.replace(" ", "").split(",")),
            "steps": steps, "levels": levels, "rounds": rounds, "lambda_": lambda_,
            **_options(set_, (RetrainConfig,))[RetrainConfig],
        }
    )  # fmt: skip
    with console.progress("retrain") as update:
        rows = work(
            model_path(model), data, run, out, config, lambda note, done, all_: update(done, all_, note)
        )
    if as_json:
        console.show_json({"file": str(out), "rows": rows})
    else:
        console.show_table(
            "val split (rates: ideal code length)", list(rows[0]), [list(r.values()) for r in rows]
        )
    if not any(r["kept"] for r in rows[1:]):
        console.say("no phase lowered J: the weights are those of the start")
    console.say(f"{out}: J {rows[0]['J']:.4f} -> {min(r['J'] for r in rows if r['kept']):.4f}, {quantizer}")


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="A float model file or zoo name.")],
    calib: Annotated[Path, typer.Option(help="Folder of calibration pictures (see --split).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The integer model file to write.")],
    weights: Annotated[int, typer.Option(help="Bits of a weight, 2..16 (h_s: at most 7).")] = 8,
    activations: Annotated[int, typer.Option(help="Bits of an activation, 4..15.")] = 8,
    number_format: Annotated[
        str,
        typer.Option("--format", help="auto, coded, uniform, affine, codebook, power_of_two, additive_power"),
    ] = "auto",
    scope: Annotated[
        str, typer.Option(help="Networks to quantize, e.g. g_s or h_a,h_s; the rest keep 12 bits.")
    ] = "g_a,h_a,h_s,g_s",
    rdo: Annotated[bool, typer.Option(help="Refine the integers by gradients of the cost.")] = True,
    lambda_: Annotated[
        float | None, typer.Option("--lambda", help="Of J; default: what the model was trained with.")
    ] = None,
    strategy: Annotated[str, typer.Option(help="layer, block or joint.")] = "joint",
    steps: Annotated[
        int | None, typer.Option(help="Gradient steps; default: 250 below 6 bits, none otherwise.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Weight bits by layer, from `rdquant allocate`; over --weights.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other option of QuantizeConfig or RdoConfig, as NAME=JSON."),
    ] = None,
    images: Annotated[int, typer.Option(help="How many calibration pictures to use.")] = 64,
    split: Annotated[str | None, typer.Option(help="Only this split of the folder's CSV, e.g. val.")] = None,
    side: Annotated[int, typer.Option(help="Side of the centre crop taken from each.")] = 256,
    run: Annotated[
        Path | None, typer.Option(help="Folder that keeps the search's state, to resume from.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Quantize a float codec to integers: every layer, static ranges, exact on every machine.

    Channels are mixed and weights rounded by what errors do to the decoded picture. With --rdo (the default)
    gradients of the codec's own rate-distortion cost refine the result where few bits leave room for it.
    """
    from .allocate import Plan
    from .files.float_models import load_float
    from .files.integer_models import save_integer
    from .files.model_file import model_description
    from .files.split import split_files
    from .load import LATENTS, model_path
    from .weights import QuantizeConfig, load_calibration
    from .weights import quantize as convert
    from .weights.rdo import calibrate
    from .weights.rdo_config import RdoConfig

    path = model_path(model)
    codec, parent = load_float(path), model_description(path)
    lam = lambda_ or parent.get("lambda")
    options = _options(set_, (QuantizeConfig, RdoConfig))
    chosen = Plan.load(plan) if plan is not None else None
    if chosen is not None:
        options[QuantizeConfig]["layer_bits"] = dict(chosen.bits)
        if number_format == "auto":
            number_format = chosen.number_format
    config = QuantizeConfig(
        **{
            "weight_bits": weights,
            "activation_bits": activations,
            "number_format": number_format,
            "scope": tuple(scope.replace(" ", "").split(",")),
            **options[QuantizeConfig],
        }
    )
    pictures = load_calibration(split_files(calib, split), images, side)
    description: dict[str, Any] = {
        "parent": model if zoo.find(model) else Path(model).name,
        "calibration_pictures": len(pictures),
        "lambda": lam,
        **{k: parent[k] for k in (LATENTS,) if k in parent},
    }
    trace: list[dict[str, Any]] = []
    with console.progress("calibrate") as update:
        if rdo:
            if lam is None:
                raise UsageError(f"{model} does not say its lambda; pass --lambda (or --no-rdo)")
            search = RdoConfig(**{"lambda_": lam, "strategy": strategy, "steps": steps, **options[RdoConfig]})
            integer, found = calibrate(codec, pictures, config, search, description, run, update)
            trace = found.entries
        else:
            integer = convert(codec, pictures, config, description, update)
    save_integer(integer, out)
    costs = {e["unit"]: e["J"] for e in trace if e["unit"] in ("float", "start", "grid", "bias", "end")}
    size = out.stat().st_size
    planned = chosen.size if chosen is not None else None
    if as_json:
        console.show_json({"file": str(out), "bytes": size, "planned_bytes": planned, "trace": trace})
        return
    if costs:
        columns = ("J of the float model", *(f"after {unit}" for unit in list(costs)[1:]))
        console.show_table("calibration pictures (estimate)", columns, [list(costs.values())])
    if planned is None:
        console.say(f"{out}: {size} bytes, W{config.weight_bits}A{config.activation_bits}")
    else:
        console.say(f"{out}: {size} bytes, the plan predicted {planned}; A{config.activation_bits}")


def _options(items: list[str] | None, kinds: tuple[type, ...]) -> dict[type, dict[str, Any]]:
    """``NAME=JSON`` strings, given to whichever dataclass has the field."""
    found: dict[type, dict[str, Any]] = {kind: {} for kind in kinds}
    names = {kind: {f.name for f in dataclasses.fields(kind)} for kind in kinds}
    for item in items or []:
        name, separator, value = item.partition("=")
        if not separator:
            raise UsageError(f"--set takes NAME=VALUE, got {item!r}")
        owners = [kind for kind in kinds if name in names[kind]]
        if not owners:
            raise UsageError(
                f"--set: no option {name!r}; there are {', '.join(sorted(set().union(*names.values())))}"
            )
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value
        found[owners[0]][name] = tuple(parsed) if isinstance(parsed, list) else parsed
    return found


@app.command()
def allocate(
    model: Annotated[str, typer.Argument(help="A float model file or zoo name.")],
    calib: Annotated[Path, typer.Option(help="Folder of calibration pictures (see --split).")],
    target_size: Annotated[
        list[str],
        typer.Option(help="25% (of float32), 5x (smaller), 4.5bits (average), 800kB or bytes; repeatable."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The plan; with several sizes, a folder.")],
    method: Annotated[
        str, typer.Option(help="With --rounds 0: knapsack (exact) or fmpq (the paper's tolerance).")
    ] = "knapsack",
    rounds: Annotated[
        int, typer.Option(help="Rounds that measure around the plan, half a minute each; 0: the table alone.")
    ] = 3,
    lambda_: Annotated[
        float | None, typer.Option("--lambda", help="Of J; default: what the model was trained with.")
    ] = None,
    activations: Annotated[int, typer.Option(help="Bits of an activation.")] = 8,
    sensitivity: Annotated[
        str, typer.Option(help="measured, width by width; or predicted from one gradient, in seconds.")
    ] = "measured",
    table: Annotated[
        Path | None, typer.Option(help="Sensitivity table: kept here, and read instead of measured.")
    ] = None,
    images: Annotated[int, typer.Option(help="Pictures: three of four calibrate, one judges.")] = 64,
    split: Annotated[str | None, typer.Option(help="Only this split of the folder's CSV, e.g. val.")] = None,
    side: Annotated[int, typer.Option(help="Side of the centre crop taken from each.")] = 256,
    as_json: Json = False,
) -> None:
    """Choose a bit-width for every layer so that the model file has a wanted size.

    Measures once what each layer at each width does to J (minutes, resumable), or predicts it (seconds), then
    solves for any size in milliseconds, and measures around that plan whether layers are better otherwise
    together (--rounds).
    `rdquant quantize --plan` takes the result.
    """
    from .allocate.run import allocate as run
    from .files.float_models import load_float
    from .files.model_file import model_description
    from .files.split import split_files
    from .load import model_path
    from .weights import QuantizeConfig, load_calibration

    path = model_path(model)
    lam = lambda_ or model_description(path).get("lambda")
    if lam is None:
        raise UsageError(f"{model} does not say its lambda; pass --lambda")
    pictures = load_calibration(split_files(calib, split), images, side)
    config = QuantizeConfig(activation_bits=activations, number_format="coded")
    with console.progress("sensitivity") as update:
        plans, found_table = run(
            load_float(path), pictures, config, lam, target_size, method, rounds, table, sensitivity, update
        )
    for text, found in plans.items():
        name = "".join(c if c.isalnum() or c in ".-" else "_" for c in text)
        target = out if len(plans) == 1 else out / f"{name}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        found.save(target)
    if as_json:
        console.show_json({k: p.to_json() for k, p in plans.items()})
        return
    sizes = found_table.sizes
    rows = [
        [k, p.size, sizes.float_bytes / p.size, p.average_bits(sizes.counts),
         sizes.coded_bits(p.size), 100 * p.increase,
         " ".join(f"{b}" for b in p.bits.values())]
        for k, p in plans.items()
    ]  # fmt: skip
    columns = ("target", "bytes", "x smaller", "mean bits", "coded", "J +%", "bits by layer")
    console.show_table(f"plans for {model} ({method}); layers: {' '.join(sizes.counts)}", columns, rows)


@app.command()
def encode(
    images: Annotated[list[Path], typer.Argument(help="Pictures of any size that Pillow reads, or folders.")],
    model: Model = zoo.DEFAULT,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File; for several pictures a folder. Default: beside each."),
    ] = None,
    quantizer: Quantizer = None,
    step: Step = None,
    effort: Effort = None,
    pixel_checksum: Annotated[
        bool, typer.Option(help="Decode as well, and let the file carry a checksum of the picture.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="With several: code again what is there.")] = False,
) -> None:
    """Compress pictures to .rdq files.

    With several pictures or a folder, a bad picture does not stop the others (exit code 1 tells), and
    files that exist are skipped, so that the same command resumes.
    """
    from .files.atomic import atomic_write
    from .files.images import SUFFIXES, read_image
    from .load import open_coder

    coder = None

    def work(source: Path, target: Path) -> str:
        nonlocal coder
        rgb = read_image(source)
        coder = coder or open_coder(model, quantizer, step, effort)
        data = coder.encode(rgb, pixel_checksum)
        with atomic_write(target) as handle:
            handle.write(data)
        return f"{target}: {len(data)} bytes, {8 * len(data) / rgb[..., 0].size:.3f} bpp"

    _each(images, SUFFIXES, ".rdq", work, out, overwrite)


@app.command()
def decode(
    files: Annotated[list[Path], typer.Argument(help=".rdq files, or folders of them.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File; for several a folder. Default: beside each, .png."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Needed unless the zoo has the model.")
    ] = None,
    max_pixels: Annotated[int, typer.Option(help="Refuse larger pictures.")] = 2**28,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact/--approximate",
            help="The same pixels on every machine, or faster ones that are 1 off here and there.",
        ),
    ] = True,
    overwrite: Annotated[bool, typer.Option(help="With several: decode again what is there.")] = False,
) -> None:
    """Decode .rdq files to pictures.

    With several files or a folder, a damaged file does not stop the others (exit code 1 tells), and
    pictures that exist are skipped, so that the same command resumes.
    """
    from .coder import ImageCoder
    from .files.container import Limits, read
    from .files.images import write_image
    from .load import coder_for, open_coder

    limits = Limits(pixels=max_pixels)
    coders: dict[bytes, ImageCoder] = {}

    def work(source: Path, target: Path) -> str:
        try:
            data = source.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read {source}: {error.strerror}") from None
        header, _ = read(data, limits)
        key = b"" if model else header.fingerprint
        if key not in coders:
            coders[key] = open_coder(model) if model else coder_for(header.fingerprint)
        write_image(target, coders[key].decode(data, limits, exact))
        return f"{target}: {header.width}x{header.height}"

    _each(files, {".rdq"}, ".png", work, out, overwrite)


def _each(
    sources: list[Path],
    suffixes: set[str],
    suffix: str,
    work: Callable[[Path, Path], str],
    out: Path | None,
    overwrite: bool,
) -> None:
    """``work`` on one file, whose error ends the command, or on many, whose errors are reported."""
    from . import batch

    if len(sources) == 1 and not sources[0].is_dir():
        target = out or sources[0].with_suffix(suffix)
        console.say(work(sources[0], target / (sources[0].stem + suffix) if target.is_dir() else target))
        return
    found = batch.collect(sources, suffixes)
    folders = {f.parent for f in found}
    if out is None and len(folders) > 1:
        raise UsageError(f"the files are in {len(folders)} folders; name one for the results with --out")
    with console.progress(suffix) as update:
        report = batch.run(found, out or folders.pop(), suffix, work, overwrite, update)
    for _, line in report.done:
        console.say(line)
    for source, line in report.failed:
        console.error(line if str(source) in line else f"{source}: {line}")
    console.say(report.summary())
    if report.failed:
        raise typer.Exit(1)


@app.command("inspect")
def inspect_command(
    target: Annotated[str, typer.Argument(help="An .rdq file, a model file or a zoo name.")],
    as_json: Json = False,
) -> None:
    """Show what is in a file: every header field, or every layer of a model."""
    from .files import inspect
    from .load import model_path

    path = model_path(target)
    image = inspect.is_container(path)
    found = inspect.inspect_container(path) if image else inspect.inspect_model(path)
    if as_json:
        console.show_json(found)
        return
    rows = found.pop("rows")
    columns = inspect.CONTAINER_COLUMNS if image else inspect.MODEL_COLUMNS
    for key, value in found.items():
        print(f"{key}: {json.dumps(value) if isinstance(value, dict) else value}")
    console.show_table("", columns, rows)


@app.command()
def evaluate(
    model: Annotated[
        list[str], typer.Option("--model", "-m", help="A model; give it again for more points.")
    ],
    images: Annotated[Path, typer.Option(help="Folder of pictures.")],
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
    name: Annotated[str, typer.Option(help="Name of the curve.")] = "rdquant",
    dataset: Annotated[str | None, typer.Option(help="Name of the data set; default: the folder's.")] = None,
    check: Annotated[bool, typer.Option(help="Compare each decoded file with the forward pass.")] = True,
    quantizer: Quantizer = None,
    step: Step = None,
    effort: Effort = None,
) -> None:
    """Code a folder of pictures to real files, decode them, and measure rate, quality and time."""
    from .evaluate import Curve, Point, machine
    from .evaluate import evaluate as run
    from .files.images import list_images
    from .load import open_coder

    files = list_images(images)
    points = []
    for m in model:
        coder = open_coder(m, quantizer, step, effort)
        with console.progress(m) as update:
            results = run(coder, files, check, update)
        points.append(Point(m, coder.describe(), results))
    parts = ["rdquant evaluate", *(f"-m {m}" for m in model), f"--images {images.name}"]
    command = " ".join(
        [
            *parts,
            *([f"--quantizer {quantizer}"] if quantizer else []),
            *([] if effort is None else [f"--effort {effort}"]),
            *([] if step is None else [f"--step {step}"]),
        ]
    )
    curve = Curve(name, dataset or images.name, points, {"command": command, "machine": machine()})
    if json_out is not None:
        curve.save(json_out)
    columns = ("model", "bpp", "estimated", "PSNR dB", "MS-SSIM", "encode s", "decode s")
    rows = [[p.label, p.bpp, p.bpp_estimated, p.psnr, p.ms_ssim, p.encode_s, p.decode_s] for p in points]
    console.show_table(f"{curve.dataset}, {len(files)} pictures, means", columns, rows)


@app.command()
def bdrate(
    anchor: Annotated[Path, typer.Argument(help="Result file of the anchor.")],
    test: Annotated[Path, typer.Argument(help="Result file of the tested codec.")],
    as_json: Json = False,
) -> None:
    """Compare two curves: BD-rate by PCHIP and Akima, on PSNR and MS-SSIM."""
    from .evaluate import Curve, bd_rate, bd_rate_per_image
    from .evaluate.bdrate import BDRate

    a, t = Curve.load(anchor), Curve.load(test)
    results: list[tuple[str, BDRate]] = [("mean curve", bd_rate(a, t))]
    for label, compute in (
        ("mean curve", lambda: bd_rate(a, t, method="akima")),
        ("per picture", lambda: bd_rate_per_image(a, t)),
        ("mean curve", lambda: bd_rate(a, t, "ms_ssim_db")),
    ):
        try:
            results.append((label, compute()))
        except RdquantError as error:
            console.say(f"left out: {error}")
    if as_json:
        console.show_json([{"aggregation": label, **dataclasses.asdict(r)} for label, r in results])
        return
    rows = [
        (
            r.metric,
            r.method,
            label,
            f"{r.percent:+.2f} %",
            f"{r.low:.2f}..{r.high:.2f} dB",
            r.anchor_points,
            r.test_points,
        )
        for label, r in results
    ]
    columns = ("metric", "interpolation", "aggregation", "BD-rate", "overlap", "anchor points", "test points")
    console.show_table(f"{t.name} against {a.name}, {t.dataset}", columns, rows)


study_app = typer.Typer(
    help="Declared grids of measurements that store every cell and resume.", no_args_is_help=True
)
app.add_typer(study_app, name="study")


@study_app.command("searches")
def searches_command(
    model: Annotated[str, typer.Argument(help="A float model file or zoo name.")],
    calib: Annotated[Path, typer.Option(help="Folder whose val split calibrates and judges.")],
    target_size: Annotated[str, typer.Option(help="As for rdquant allocate.")] = "12x",
    method: Annotated[
        list[str] | None, typer.Option(help="Only these; default: all. Greedy takes long.")
    ] = None,
    budget: Annotated[int, typer.Option(help="Model evaluations of the evolutionary search.")] = 1000,
    images: Annotated[int, typer.Option(help="Pictures that judge; three times as many calibrate.")] = 8,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the results here.")] = None,
    as_json: Json = False,
) -> None:
    """Compare the searches of bit-widths: what each finds for one size, and what it costs."""
    from .allocate.run import JUDGES, judged_twins
    from .evaluate.results import machine
    from .files.atomic import atomic_write
    from .files.float_models import load_float
    from .files.model_file import model_description
    from .files.split import split_files
    from .load import model_path
    from .study import searches
    from .weights import QuantizeConfig, load_calibration

    lam = model_description(model_path(model)).get("lambda")
    if lam is None:
        raise UsageError(f"{model} does not say its lambda")
    if unknown := set(method or ()) - set(searches.METHODS):
        raise UsageError(f"no method {', '.join(sorted(unknown))}; there are {', '.join(searches.METHODS)}")
    codec = load_float(model_path(model))
    config = QuantizeConfig(number_format="coded")
    crops = load_calibration(split_files(calib, "val"), JUDGES * images, 256)
    parameters = sum(p.numel() for p in codec.parameters())
    with console.progress("searches") as update:
        twins, x = judged_twins(codec, crops, config, update)
        found, table = searches.compare(
            twins, x, lam, parameters, target_size,
            tuple(method or searches.METHODS), budget, progress=update,
        )  # fmt: skip
    command = f"rdquant study searches {model} --calib TRAIN --target-size {target_size} --images {images}"
    result = {
        "command": command, "machine": machine(), "target": target_size, "judges": len(x),
        "float_bytes": table.sizes.float_bytes, "searches": {k: o.to_json() for k, o in found.items()},
    }  # fmt: skip
    if out is not None:
        with atomic_write(out) as handle:
            handle.write(json.dumps(result, indent=1).encode())
    if as_json:
        console.show_json(result)
        return
    rows = [[k, o.plan.size, 100 * o.increase, o.evaluations, o.seconds] for k, o in found.items()]
    columns = ("search", "bytes", "J +%", "model evaluations", "seconds")
    console.show_table(f"searches for {model}, {target_size}, {len(x)} judging pictures", columns, rows)


@study_app.command("ablation")
def ablation_command(
    calib: Annotated[Path, typer.Option(help="Folder whose val split calibrates and measures.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of results; cells found there are kept.")],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="Float models of the parent curve; default: the zoo's."),
    ] = None,
    subject: Annotated[str, typer.Option(help="The float model that is quantized.")] = "mean-scale-s-0130",
    only: Annotated[list[str] | None, typer.Option(help="Only these tables, e.g. range.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="RdoConfig option for all cells.")] = None,
    figures: Annotated[bool, typer.Option(help="Also draw one figure per table.")] = True,
    as_json: Json = False,
) -> None:
    """What each part of RDO-PTQ gives: strategy, formats, ranges, biases, pictures, scopes.

    Of the val split, every third picture is held out for measuring; the others calibrate.
    """
    from .evaluate.results import machine
    from .files.atomic import atomic_write
    from .files.float_models import load_float
    from .files.model_file import model_description
    from .files.split import split_files
    from .load import model_path
    from .study import ablation
    from .study.plots import ablation_figure, to_png
    from .weights import load_calibration
    from .weights.rdo_config import RdoConfig

    parents = model or [n for n, e in zoo.index().items() if e["kind"] == "float"]
    if subject not in parents:
        raise UsageError(f"--subject {subject} is not among the models: {', '.join(parents)}")
    lam = model_description(model_path(subject)).get("lambda")
    if lam is None:
        raise UsageError(f"{subject} does not say its lambda")
    files = split_files(calib, "val")
    crops = load_calibration(files, len(files), 256)
    held_out = crops[::3]
    pool = [c for i, c in enumerate(crops) if i % 3]
    study = ablation.Study(
        [load_float(model_path(m)) for m in parents], parents.index(subject), lam, pool, held_out, out,
        _options(set_, (RdoConfig,))[RdoConfig],
    )  # fmt: skip
    cells = [c for c in ablation.grid() if not only or c.table in only]
    if not cells:
        known = ", ".join(dict.fromkeys(c.table for c in ablation.grid()))
        raise UsageError(f"no table {', '.join(only or [])}; there are {known}")
    with console.progress("ablation") as update:
        results = study.run(cells, update)
    tables = ablation.tables(results)
    note = (
        f"% more rate at equal PSNR, one point ({subject}, lambda {lam}), {len(held_out)} held-out pictures "
        f"of 256x256, real files; {ablation.IMAGES} calibration pictures unless the table is about them; "
        f"gradients reduced to {ablation.GRADIENTS['steps']} steps, "
        f"mixings to rounds of {ablation.MIXING_STEPS}"
    )
    with atomic_write(out / "tables.json") as handle:
        stored = {k: {"columns": c, "rows": r} for k, (c, r) in tables.items()}
        seconds = sum(r["calibration_seconds"] for _, r in results)
        about = {"command": "rdquant study ablation --calib TRAIN", "machine": machine(), "note": note}
        handle.write(json.dumps({**about, "seconds": seconds, "tables": stored}, indent=1).encode())
    if figures:
        for name, (columns, rows) in tables.items():
            with atomic_write(out / f"{name}.png") as handle:
                handle.write(to_png(ablation_figure(name, columns, rows)))
    if as_json:
        console.show_json(
            {k: [dict(zip(c, r, strict=True)) for r in rows] for k, (c, rows) in tables.items()}
        )
        return
    for name, (columns, rows) in tables.items():
        console.show_table(f"{name}: {note}", columns, rows)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for files and the report.")] = Path("demo"),
    as_json: Json = False,
) -> None:
    """Quantize the bundled codec, code photographs to real files, decode them, and write a report."""
    from .study.demo import COLUMNS, run_demo

    with console.progress("demo") as update:
        rows, report = run_demo(out, update)
    if as_json:
        console.show_json([dict(zip(COLUMNS, row, strict=True)) for row in rows])
    else:
        console.show_table("photographs through the quantized codec (real files)", COLUMNS, rows)
    console.say(f"report: {report}")


def main() -> None:
    """Entry point: errors of ours are one line and exit code 2, warnings are one line."""
    warnings.showwarning = lambda message, *_: console.say(f"warning: {message}")
    try:
        app()
    except RdquantError as error:
        console.error(str(error))
        sys.exit(2)


if __name__ == "__main__":
    main()
