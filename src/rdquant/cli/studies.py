"""Verbs that study: grids of measurements."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Annotated

import typer

from .. import console, zoo
from ..errors import UsageError
from .common import Overwrite, Ray, Verbs, app, free, options_of

PANEL = "Study"

study_app = Verbs(
    help="Declared grids of measurements that store every cell and resume.", no_args_is_help=True
)
app.add_typer(study_app, name="study", rich_help_panel=PANEL)

Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes, each making one cell at a time with its share of the threads and memory of its own; "
        "default: as many as cores, or as --threads says.",
    ),
]


def curve_models() -> list[str]:
    """The zoo's float models of one lambda each, trained for plain rounding: points of float curves."""
    return [
        name
        for name, entry in zoo.index().items()
        if entry["kind"] == "float" and "lambda" in entry and "tcq" not in name
    ]


@study_app.command("searches")
def searches_command(
    model: Annotated[str, typer.Argument(help="A float model file or zoo name.")],
    calib: Annotated[Path, typer.Option(help="Folder whose val split calibrates and judges.")],
    target_size: Annotated[str, typer.Option(help="As for rdquant allocate.")] = "12x",
    method: Annotated[
        list[str] | None, typer.Option(help="Only these; default: all. Greedy takes long.")
    ] = None,
    budget: Annotated[
        int, typer.Option(help="Model evaluations of the evolutionary search and of annealing.")
    ] = 1000,
    images: Annotated[int, typer.Option(help="Pictures that judge; three times as many calibrate.")] = 8,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the results here.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare the searches of bit-widths: what each finds for one size, and what it costs."""
    from ..allocate.methods import METHODS, Problem
    from ..allocate.run import JUDGES, judged_twins
    from ..files.atomic import atomic_write
    from ..files.float_models import load_float
    from ..files.model_file import model_description
    from ..files.split import split_files
    from ..measure.bootstrap import percent_text
    from ..measure.results import machine
    from ..passes import QuantizeConfig, load_calibration
    from ..study import searches
    from ..zoo import model_path

    if out is not None:
        free(out, overwrite)
    lam = model_description(model_path(model)).get("lambda")
    if lam is None:
        raise UsageError(f"{model} does not say its lambda")
    if unknown := set(method or ()) - set(METHODS):
        raise UsageError(f"no method {', '.join(sorted(unknown))}; there are {', '.join(METHODS)}")
    codec = load_float(model_path(model))
    config = QuantizeConfig(number_format="coded")
    crops = load_calibration(split_files(calib, "val"), JUDGES * images, 256)
    parameters = sum(p.numel() for p in codec.parameters())
    with console.progress("searches") as update:
        twins, x = judged_twins(codec, crops, config, update)
        problem = Problem(twins, x, lam, parameters, budget=budget, progress=update)
        found = searches.compare(problem, target_size, tuple(method or METHODS))
    command = (
        f"rdquant study searches {model} --calib TRAIN --target-size {target_size} --images {images} "
        f"--budget {budget}"
    )
    result = {
        "command": command, "machine": machine(), "model": model, "target": target_size, "judges": len(x),
        "float_bytes": problem.sizes.float_bytes, "searches": {k: o.to_json() for k, o in found.items()},
    }  # fmt: skip
    if out is not None:
        with atomic_write(out) as handle:
            handle.write(json.dumps(result, indent=1).encode())
    if console.settings.json:
        console.show_json(result)
        return
    rows = [
        [k, o.plan.size, percent_text(o.increase, o.interval, 100), o.evaluations, o.seconds]
        for k, o in found.items()
    ]
    columns = ("search", "bytes", "J [95 %]", "model evaluations", "seconds")
    console.show_table(f"searches for {model}, {target_size}, {len(x)} judging pictures", columns, rows)


@study_app.command("compare")
def compare_command(
    calib: Annotated[Path, typer.Option(help="Folder whose val split calibrates.")],
    images: Annotated[Path, typer.Option(help="Folder of pictures that are measured, e.g. Kodak.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of results; cells found there are kept.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help="Float models or zoo names; default: the zoo's mean-scale-s-0130."
        ),
    ] = None,
    parent: Annotated[
        list[str] | None,
        typer.Option(
            help="Float models of the same architectures that complete the curves, not quantized themselves; "
            "default: the zoo's. Models whose names agree up to the last hyphen share a curve."
        ),
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only these; default: all.")] = None,
    at: Annotated[
        list[str] | None, typer.Option(help="Widths like W8A8, sizes like 8x; default: four of each.")
    ] = None,
    calibration: Annotated[int, typer.Option(help="Calibration pictures.")] = 64,
    every: Annotated[int, typer.Option(help="Measure one of so many pictures.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Fewer gradient steps.")] = None,
    mixing_steps: Annotated[int | None, typer.Option(help="Fewer steps to learn mixings.")] = None,
    budget: Annotated[int, typer.Option(help="Plans that evolutionary and annealing measure.")] = 1000,
    jobs: Jobs = None,
    ray: Ray = None,
) -> None:
    """All methods beside each other: more rate at equal PSNR, by method and width or size, from real files.

    Resumes: every cell is stored in the folder as soon as it is made. A process that dies loses one cell,
    which is tried once more; Ctrl-C keeps what is stored. An asterisk marks cells made with less than usual;
    what was less is in the cell's file. What was published stands beside.
    """
    from ..files.atomic import atomic_write
    from ..measure.results import machine
    from ..study import compare, executor

    chosen = model or ["mean-scale-s-0130"]
    cells = compare.grid(
        [Path(m).stem for m in chosen],
        method or list(dict.fromkeys([*compare.METHODS, *compare.SEARCHES])),
        at or [*compare.WIDTHS, *compare.SIZES],
    )
    recipe = functools.partial(
        compare.open_comparison, [*chosen, *(parent if parent is not None else curve_models())], calib,
        images, out, compare.Reduced(calibration, steps, mixing_steps, budget, every),
    )  # fmt: skip
    study = recipe()
    with console.progress("compare") as update:
        results = executor.run(study, recipe, cells, jobs, ray, update, console.say)
    note = (
        f"{images.name}, {len(study.shown)} pictures, whole files; % more rate at equal PSNR than the float "
        "parents' curve, one point (of J where there is no curve); * reduced"
    )
    about = {
        "command": " ".join(
            [
                "rdquant study compare --calib TRAIN --images",
                images.name.upper(),
                "-o RUN",
                *(f"--model {Path(m).stem}" for m in model or []),
                *(f"--method {m}" for m in method or []),
                *(f"--at {a}" for a in at or []),
                *study.reduced.options(),
            ]
        ),
        "machine": machine(),
        "note": note,
    }
    with atomic_write(out / "compare.json") as handle:
        handle.write(json.dumps({**about, "cells": results}, indent=1).encode())
    if console.settings.json:
        console.show_json({**about, "cells": results})
        return
    for name in dict.fromkeys(c.model for c in cells):
        console.show_table(f"{name}: {note}", *compare.table(results, name))


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
    jobs: Jobs = None,
    ray: Ray = None,
) -> None:
    """What each part of RDO-PTQ gives: strategy, formats, ranges, biases, pictures, scopes.

    Of the val split, every third picture is held out for measuring; the others calibrate. Resumes: every cell
    is stored in the folder as soon as it is made. A process that dies loses one cell, which is tried once
    more; Ctrl-C keeps what is stored.
    """
    from ..files.atomic import atomic_write
    from ..measure.results import machine
    from ..passes.rdo_config import RdoConfig
    from ..study import ablation, executor
    from ..study.plots import ablation_figure, to_png

    cells = [c for c in ablation.grid() if not only or c.table in only]
    if not cells:
        known = ", ".join(dict.fromkeys(c.table for c in ablation.grid()))
        raise UsageError(f"no table {', '.join(only or [])}; there are {known}")
    options = options_of(set_, (RdoConfig,))[RdoConfig]
    recipe = functools.partial(ablation.open_study, model or curve_models(), subject, calib, out, options)
    study = recipe()
    made: list[executor.Taken] = []

    def say(taken: executor.Taken) -> None:
        made.append(taken)
        console.say(taken)

    with console.progress("ablation") as update:
        results = executor.run(study, recipe, cells, jobs, ray, update, say)
    pairs = list(zip(cells, results, strict=True))
    tables, intervals = ablation.tables(pairs), ablation.tables(pairs, "rate_increase_interval")
    note = (
        f"% more rate at equal PSNR, one point ({subject}, lambda {study.lambda_}), "
        f"{len(study.held_out)} held-out pictures of 256x256, real files; "
        f"{ablation.IMAGES} calibration pictures unless the table is about them; "
        f"gradients reduced to {ablation.GRADIENTS['steps']} steps, "
        f"mixings to rounds of {ablation.MIXING_STEPS}; in brackets: 95 % confidence, bootstrap over pictures"
    )
    words = [*(f"--only {t}" for t in only or []), *(f"--set {s}" for s in set_ or [])]
    result = {
        "command": " ".join(["rdquant study ablation --calib TRAIN -o RUN", *words]),
        "machine": machine(), "model": subject, "note": note,
        "seconds": sum(r["calibration_seconds"] for r in results),
        "made": dataclasses.asdict(made[0]) if made else None,
        "tables": {
            k: {"columns": c, "rows": r, "intervals": intervals[k][1]} for k, (c, r) in tables.items()
        },
    }  # fmt: skip
    with atomic_write(out / "tables.json") as handle:
        handle.write(json.dumps(result, indent=1).encode())
    if figures:
        for name, (columns, rows) in tables.items():
            with atomic_write(out / f"{name}.png") as handle:
                handle.write(to_png(ablation_figure(name, columns, rows)))
    if console.settings.json:
        console.show_json(result)
        return
    for name, (columns, rows) in tables.items():
        console.show_table(f"{name}: {note}", columns, ablation.shown(rows, intervals[name][1]))
