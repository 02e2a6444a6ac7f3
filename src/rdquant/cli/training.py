"""Verbs that train: train, retrain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import console
from .common import Overwrite, Step, app, free, options_of

PANEL = "Train"


@app.command(rich_help_panel=PANEL)
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
    from ..train import TrainConfig, Trainer

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
        fields.update(options_of(set_, (TrainConfig,))[TrainConfig])
        options = TrainConfig(**fields)
    trainer = Trainer(options, run, data, init)
    with console.progress(f"train lambda {options.lambda_:g}") as update:

        def report(step: int, line: dict[str, Any]) -> None:
            note = f"loss {line['loss']:.3f}  {line['bpp']:.3f} bpp  {line['psnr']:.2f} dB"
            update(step, options.steps, note)

        trainer.run(report)
    found = {"file": str(run / "model.safetensors"), "steps": trainer.step, "seconds": trainer.seconds}
    if console.settings.json:
        console.show_json(found)
    else:
        console.say(f"{found['file']} after {trainer.step} steps, {console.Seconds(trainer.seconds)}")


@app.command(rich_help_panel=PANEL)
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
    overwrite: Overwrite = False,
) -> None:
    """Retrain decoder and hyper-coder on the latents that the file's own quantizer produces.

    What the encoder's analysis computes stays as it is. The table shows J, rate and PSNR on the val split
    and how far the histogram of levels drifted; a phase that made J worse is undone. The model then encodes
    with that quantizer by default; `rdquant quantize` turns it into integers like any other.
    """
    from ..train.retrain import RetrainConfig
    from ..train.retrain import retrain as work
    from ..zoo import model_path

    free(out, overwrite)
    config = RetrainConfig(
        **{
            "quantizer": quantizer, "step": step, "phases": tuple(phases.replace(" ", "").split(",")),
            "steps": steps, "levels": levels, "rounds": rounds, "lambda_": lambda_,
            **options_of(set_, (RetrainConfig,))[RetrainConfig],
        }
    )  # fmt: skip
    with console.progress("retrain") as update:
        rows = work(
            model_path(model), data, run, out, config, lambda note, done, all_: update(done, all_, note)
        )
    if console.settings.json:
        console.show_json({"file": str(out), "rows": rows})
    else:
        console.show_table(
            "val split (rates: ideal code length)", list(rows[0]), [list(r.values()) for r in rows]
        )
    if not any(r["kept"] for r in rows[1:]):
        console.say("no phase lowered J: the weights are those of the start")
    console.say(f"{out}: J {rows[0]['J']:.4f} -> {min(r['J'] for r in rows if r['kept']):.4f}, {quantizer}")
