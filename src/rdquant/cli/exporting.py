"""Verbs that make a model run elsewhere: export, finetune."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from .. import console, zoo
from ..errors import UsageError
from .common import Overwrite, app, free, options_of

PANEL = "Deploy"


@app.command(rich_help_panel=PANEL)
def export(
    model: Annotated[str, typer.Argument(help="An integer model file or zoo name.")],
    to: Annotated[str, typer.Option(help="onnx or openvino.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the networks and report.json.")],
    network: Annotated[
        list[str] | None, typer.Option(help="Networks to export; default: analysis and synthesis.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write networks as standard quantized graphs for other engines, with this model's own integers.

    The table says which operations have 8 bits there and which stay in float. Symbols are still coded by
    rdquant: `rdquant decode --engine` does all of it.
    """
    from importlib.util import find_spec

    from ..files.integer_models import load_integer
    from ..zoo import model_path

    if to not in ("onnx", "openvino"):
        raise UsageError(f"--to must be onnx or openvino, got {to!r}")
    free(out / "report.json", overwrite)
    needed = ("onnx",) if to == "onnx" else ("onnx", "openvino")
    if missing := [package for package in needed if find_spec(package) is None]:
        raise UsageError(f"exporting to {to} needs {', '.join(missing)}: pip install 'rdquant[deploy]'")
    from ..export.model import FREE, export_codec

    report = export_codec(load_integer(model_path(model)), to, out, tuple(network or FREE))  # type: ignore
    if console.settings.json:
        console.show_json(report)
        return
    for name, found in report.items():
        rows = [[o["node"], o["operation"], o["form"], o["why"]] for o in found["operations"]]
        share = found["int8 share of multiplications"]
        console.show_table(
            f"{name}: {share:.0%} of multiplications in int8", ("node", "", "form", "why"), rows
        )
    console.say(f"{out}: {', '.join(report)}")


@app.command(rich_help_panel=PANEL)
def finetune(
    model: Annotated[str, typer.Argument(help="A float model file or zoo name.")],
    data: Annotated[
        Path, typer.Option(help="Folder of pictures to learn from; a CSV with file,split is honoured.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The integer model file to write.")],
    learn: Annotated[
        str, typer.Option(help="synthesis, the cheaper steps; or all, every network.")
    ] = "synthesis",
    minutes: Annotated[float, typer.Option(help="Of gradient steps.")] = 20.0,
    pictures: Annotated[int, typer.Option(help="How many pictures to learn from.")] = 1000,
    profile: Annotated[str, typer.Option(help="As of `rdquant quantize`.")] = "exact",
    lambda_: Annotated[
        float | None, typer.Option("--lambda", help="Of J; default: what the model was trained with.")
    ] = None,
    side: Annotated[int, typer.Option(help="Side of the centre crop taken from each.")] = 256,
    calibration: Annotated[int, typer.Option(help="Of the val split: for ranges and to judge by.")] = 64,
    run: Annotated[Path | None, typer.Option(help="Folder that keeps the state, to resume from.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other option of QuantizeConfig or FinetuneConfig, as NAME=JSON."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Quantize, and let networks learn to live with it: quantization-aware training on true pictures.

    What falls is J = lambda * 255^2 * MSE + bpp, with the roundings of the integers and the latents that
    files hold. Of the synthesis alone, symbols and rates stay those of the quantized model. If J of the
    calibration pictures does not fall, the model is the one that `rdquant quantize` would have made. A model
    of many rates learns for all of them.
    """
    from ..files.float_models import load_float
    from ..files.integer_models import save_integer
    from ..files.model_file import model_description
    from ..files.split import split_files
    from ..passes import QuantizeConfig, load_calibration
    from ..passes.config import profile_options
    from ..passes.finetune import FinetuneConfig, Finetuning
    from ..zoo import model_path

    free(out, overwrite)
    path = model_path(model)
    options = options_of(set_, (QuantizeConfig, FinetuneConfig))
    quantized = QuantizeConfig(**{**profile_options(profile), **options[QuantizeConfig]})
    config = FinetuneConfig(**{"learn": learn, "minutes": minutes, **options[FinetuneConfig]})
    parent = model_description(path)
    if lambda_ is not None:
        parent["lambda"] = lambda_
    with console.progress("finetune") as update:
        work = Finetuning(
            load_float(path), load_calibration(split_files(data, "val"), calibration, side),
            load_calibration(split_files(data, "train"), pictures, side),
            quantized, config, run, update, parent,
        )  # fmt: skip
        integer, report = work.run(update)
    about = {
        **integer.description, "parent": model if zoo.find(model) else path.name, "profile": profile,
        "finetune": {**dataclasses.asdict(config), **report},
    }  # fmt: skip
    save_integer(dataclasses.replace(integer, description=about), out)
    if console.settings.json:
        console.show_json({"file": str(out), **report})
    else:
        console.show_table("calibration pictures", list(report), [list(report.values())])
        console.say(f"{out}: {console.Size(out.stat().st_size)}")
