"""Verbs that make integers of a float codec: quantize, allocate."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console, zoo
from ..errors import UsageError
from .common import Overwrite, app, free, options_of, zoo_names

if TYPE_CHECKING:
    from ..codec import Codec
    from ..passes import QuantizeConfig
    from ..passes.rdo import Trace

PANEL = "Quantize"


@app.command(rich_help_panel=PANEL)
def quantize(
    model: Annotated[str, typer.Argument(help="A float model file or zoo name.", autocompletion=zoo_names)],
    calib: Annotated[
        Path,
        typer.Option(
            help="Folder of pictures like those to be coded, but none that you test on (see --split). 16 do, "
            "64 are better."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The integer model file to write.")],
    method: Annotated[
        str,
        typer.Option(
            help="ours, or one of the literature's: minmax, percentile, mse, adaround, brecq, gptq, rdo-ptq. "
            "Other options go over what it stands for."
        ),
    ] = "ours",
    weights: Annotated[
        int, typer.Option(help="Bits of a weight, 2..16 (where decoders need it to read symbols: at most 7).")
    ] = 8,
    activations: Annotated[int, typer.Option(help="Bits of an activation, 4..15.")] = 8,
    number_format: Annotated[
        str,
        typer.Option("--format", help="auto, coded, uniform, affine, codebook, power_of_two, additive_power"),
    ] = "auto",
    profile: Annotated[
        str,
        typer.Option(
            help="exact: the best for our engine; portable: what every int8 engine has (`rdquant export`)."
        ),
    ] = "exact",
    scope: Annotated[
        str,
        typer.Option(
            help="Networks to quantize, e.g. analysis,synthesis; the rest keep 12 bits. Default: all. Also "
            "hyper_analysis, hyper_synthesis, and what the prior has: context, parameters, ..."
        ),
    ] = "",
    rdo: Annotated[bool, typer.Option(help="Refine the integers by gradients of the cost.")] = True,
    lambda_: Annotated[
        float | None,
        typer.Option(
            "--lambda",
            help="Of J; default: what the model was trained with. Needed where that does not say it and "
            "gradients run, and by RDOQ, trellises and effort when encoding.",
        ),
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="layer, block or joint; default: the method's, joint for ours.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Gradient steps (adaround, brecq: of a unit). Ours by default: 250 below 6 bits, else none."
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="Weight bits by layer, and a size, from `rdquant allocate`; over --weights."),
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
    overwrite: Overwrite = False,
) -> None:
    """Quantize a float codec to integers: every layer, static ranges, exact on every machine.

    Channels are mixed and weights rounded by what errors do to the decoded picture. With --rdo (the default)
    gradients of the codec's own rate-distortion cost refine the result where few bits leave room for it.
    Pictures that nothing learns from judge every search: none ends worse than it began. With --plan the file
    has at most the plan's bytes, and at most 1 % less.
    """
    from ..allocate import Plan
    from ..files.float_models import load_float
    from ..files.integer_models import save_integer
    from ..files.model_file import model_description
    from ..files.split import split_files
    from ..graph.capture import capture
    from ..load import carried
    from ..passes import QuantizeConfig, load_calibration, prepare, to_integer
    from ..passes.config import profile_options
    from ..passes.methods import Job, options_for, pictures_for, quantize_by
    from ..passes.rdo import Trace
    from ..passes.rdo_config import RdoConfig
    from ..passes.sized import quantize_to_size
    from ..zoo import model_path

    free(out, overwrite)
    path = model_path(model)
    codec, parent = load_float(path), model_description(path)
    lam = lambda_ or parent.get("lambda")
    options = options_of(set_, (QuantizeConfig, RdoConfig))
    chosen = Plan.load(plan) if plan is not None else None
    if chosen is not None:
        options[QuantizeConfig]["layer_bits"] = dict(chosen.bits)
        if number_format == "auto":
            number_format = chosen.number_format
    given = {"strategy": strategy, "steps": steps}
    config, search = options_for(
        method,
        {
            "weight_bits": weights,
            "activation_bits": activations,
            **profile_options(profile),
            **({"number_format": number_format} if number_format != "auto" else {}),
            "scope": tuple(n for n in scope.replace(" ", "").split(",") if n),
            **options[QuantizeConfig],
        },
        {
            "lambda_": lam or (None if rdo else 1.0),
            **{k: v for k, v in given.items() if v is not None},
            **options[RdoConfig],
        },
    )
    pictures = pictures_for(method, load_calibration(split_files(calib, split), images, side))
    description: dict[str, Any] = {
        "parent": model if zoo.find(model) else Path(model).name,
        "calibration_pictures": len(pictures),
        "profile": profile,
        **carried(parent),
        "lambda": lam,
    }
    planned = chosen.target if chosen is not None and config.number_format == "coded" else None
    about = {"method": method, "rdo": search.to_json(), **description}
    with console.progress("calibrate") as update:
        store = run / "mixings.pt" if run is not None else None
        if run is not None:
            run.mkdir(parents=True, exist_ok=True)
        prepared = prepare(capture(codec), pictures, config, update, store)

        def make(config: QuantizeConfig) -> tuple[Codec, Trace]:
            if not rdo:
                return to_integer(*prepared, config, description)[0], Trace([])
            folder = run
            if run is not None and planned is not None:  # searches of their own
                folder = run / hashlib.sha256(json.dumps(config.to_json()).encode()).hexdigest()[:8]
            job = Job(codec, pictures, config, search, folder, prepared, update)
            return quantize_by(method, job, description)

        if planned is not None:
            integer, found = quantize_to_size(make, prepared, config, planned, about, update)
        else:
            integer, found = make(config)
    trace = found.entries
    save_integer(integer, out)
    costs = {e["unit"]: e["J"] for e in trace if e["unit"] in ("float", "start", "grid", "bias", "end")}
    size = out.stat().st_size
    if console.settings.json:
        console.show_json({"file": str(out), "bytes": size, "target_bytes": planned, "trace": trace})
        return
    if costs:
        title = (
            "J = lambda * distortion + bpp (lower is better), estimated on calibration pictures that nothing "
            "learns from; start: integers as converted, end: as saved"
        )
        columns = ("of the float model", *(f"after {unit}" for unit in list(costs)[1:]))
        console.show_table(title, columns, [list(costs.values())])
    if planned is None:
        console.say(f"{out}: {console.Size(size)}, W{config.weight_bits}A{config.activation_bits}")
    else:
        console.say(f"{out}: {size} bytes of {planned}; A{config.activation_bits}")


@app.command(rich_help_panel=PANEL)
def allocate(
    model: Annotated[str, typer.Argument(help="A float model file or zoo name.", autocompletion=zoo_names)],
    calib: Annotated[
        Path, typer.Option(help="Folder of calibration pictures, none that you test on (see --split).")
    ],
    target_size: Annotated[
        list[str],
        typer.Option(help="25% (of float32), 5x (smaller), 4.5bits (average), 800kB or bytes; repeatable."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The plan; with several sizes, a folder.")],
    method: Annotated[
        str,
        typer.Option(
            help="ours; ours-quick (no table is measured); fmpq, knapsack (integer program) of the measured "
            "table; predicted, hessian: of others; greedy, evolutionary, annealing: plans measured; uniform."
        ),
    ] = "ours",
    budget: Annotated[int, typer.Option(help="Plans that evolutionary and annealing measure.")] = 1000,
    lambda_: Annotated[
        float | None, typer.Option("--lambda", help="Of J; default: what the model was trained with.")
    ] = None,
    activations: Annotated[int, typer.Option(help="Bits of an activation.")] = 8,
    table: Annotated[
        Path | None, typer.Option(help="Sensitivity table: kept here, and read instead of measured.")
    ] = None,
    images: Annotated[int, typer.Option(help="Pictures: three of four calibrate, one judges.")] = 64,
    split: Annotated[str | None, typer.Option(help="Only this split of the folder's CSV, e.g. val.")] = None,
    side: Annotated[int, typer.Option(help="Side of the centre crop taken from each.")] = 256,
    overwrite: Overwrite = False,
) -> None:
    """Choose a bit-width for every layer so that the model file has a wanted size.

    Measures once what each layer at each width does to J (minutes, resumable), then solves for any size in
    milliseconds, and measures around that plan whether layers are better otherwise together. A plan's file is
    measured, and planned again if the prediction of its size was off. `rdquant quantize --plan` takes the
    result.
    """
    from ..allocate.run import allocate as run
    from ..files.float_models import load_float
    from ..files.model_file import model_description
    from ..files.split import split_files
    from ..measure.bootstrap import percent_text
    from ..passes import QuantizeConfig, load_calibration
    from ..zoo import model_path

    names = ("".join(c if c.isalnum() or c in ".-" else "_" for c in text) for text in target_size)
    targets = {t: out / f"{name}.json" for t, name in zip(target_size, names, strict=True)}
    targets = targets if len(targets) > 1 else {target_size[0]: out}
    for target in targets.values():
        free(target, overwrite)
    path = model_path(model)
    lam = lambda_ or model_description(path).get("lambda")
    if lam is None:
        raise UsageError(f"{model} does not say its lambda; pass --lambda")
    pictures = load_calibration(split_files(calib, split), images, side)
    config = QuantizeConfig(activation_bits=activations, number_format="coded")
    with console.progress("sensitivity") as update:
        plans, sizes = run(
            load_float(path), pictures, config, lam, target_size, method, table, budget, update
        )
    for text, found in plans.items():
        found.save(targets[text])
    if console.settings.json:
        console.show_json({k: p.to_json() for k, p in plans.items()})
        return
    rows = [
        [k, p.size, sizes.float_bytes / p.size, p.average_bits(sizes.counts),
         sizes.coded_bits(p.size), percent_text(p.increase, p.interval, 100),
         " ".join(f"{b}" for b in p.bits.values())]
        for k, p in plans.items()
    ]  # fmt: skip
    columns = ("target", "bytes", "x smaller", "mean bits", "coded", "J [95 %]", "bits by layer")
    console.show_table(f"plans for {model} ({method}); layers: {' '.join(sizes.counts)}", columns, rows)
