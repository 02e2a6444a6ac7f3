"""Verbs that measure: evaluate, bdrate, anchor, results, report, demo."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from .. import console
from ..errors import RdquantError, UsageError
from .common import Effort, Overwrite, Quantizer, Ray, Step, app, free, zoo_names

PANEL = "Measure"


@app.command(rich_help_panel=PANEL)
def evaluate(
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            "-m",
            help="A model; give it again for more points. MODEL@60 is one at quality 60.",
            autocompletion=zoo_names,
        ),
    ],
    images: Annotated[
        Path, typer.Option(help="Folder of pictures, or of shards; or a shard: .tar (WebDataset), .parquet.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Result file, for `bdrate` and `report`.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the curve.")] = "rdquant",
    dataset: Annotated[str | None, typer.Option(help="Name of the data set; default: the folder's.")] = None,
    check: Annotated[bool, typer.Option(help="Compare each decoded file with the forward pass.")] = True,
    quantizer: Quantizer = None,
    step: Step = None,
    effort: Effort = 0,
    run: Annotated[
        Path | None, typer.Option(help="Folder that keeps the result of each picture, to resume from.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes, each with a picture and its share of the cores.")
    ] = None,
    ray: Ray = None,
    overwrite: Overwrite = False,
) -> None:
    """Code pictures to real files, decode them, and measure rate, quality and time.

    In brackets: 95 % confidence intervals of the means, by bootstrap over pictures. Seconds mean little with
    --jobs or --ray, where other pictures are coded beside.
    """
    from ..front import evaluate as evaluated

    if out is not None:
        free(out, overwrite)
    with console.progress("evaluate") as update:
        curve = evaluated(
            model, images, name=name, quantizer=quantizer, step=step, effort=effort, check=check,
            progress=update, run=run, jobs=jobs, ray=ray,
        )  # fmt: skip
    parts = ["rdquant evaluate", *(f"-m {m}" for m in model), f"--images {images.name}"]
    parts += [f"--quantizer {quantizer}"] if quantizer else []
    parts += [] if step is None else [f"--step {step}"]
    parts += [f"--effort {effort}"] if effort else []
    meta = {"command": " ".join(parts), **curve.meta}
    curve = dataclasses.replace(curve, dataset=dataset or curve.dataset, meta=meta)
    if out is not None:
        curve.save(out)
    if console.settings.json:
        console.show_json(curve.to_json())
        return
    rows = [
        [
            p.label, _with(p.bpp, p.interval("bpp"), 3), p.bpp_estimated,
            _with(p.psnr, p.interval("psnr"), 2), _with(p.ms_ssim, p.interval("ms_ssim"), 4),
            _seconds(p.encode_s), _seconds(p.decode_s),
        ]
        for p in curve.points
    ]  # fmt: skip
    columns = ("model", "bpp", "estimated", "PSNR dB", "MS-SSIM", "encode", "decode")
    pictures = len(curve.points[0].images)
    console.show_table(f"{curve.dataset}, {pictures} pictures, means [95 %]", columns, rows)


def _with(value: float | None, interval: tuple[float, float] | None, places: int) -> str | None:
    if value is None or interval is None:
        return None if value is None else f"{value:.{places}f}"
    return f"{value:.{places}f} [{interval[0]:.{places}f}, {interval[1]:.{places}f}]"


def _seconds(value: float | None) -> console.Seconds | None:
    return None if value is None else console.Seconds(value)


@app.command(rich_help_panel=PANEL)
def bdrate(
    anchor: Annotated[Path, typer.Argument(help="Result file of the anchor.")],
    test: Annotated[Path, typer.Argument(help="Result file of the tested codec.")],
) -> None:
    """Compare two curves: BD-rate by PCHIP and Akima, on PSNR and MS-SSIM.

    In brackets: 95 % confidence intervals, by bootstrap over pictures.
    """
    from ..measure import Curve, bd_rate, bd_rate_per_image
    from ..measure.bdrate import BDRate

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
    if console.settings.json:
        console.show_json([{"aggregation": label, **dataclasses.asdict(r)} for label, r in results])
        return
    rows = [
        (r.metric, r.method, label, r.text(), f"{r.low:.2f}..{r.high:.2f} dB", r.anchor_points, r.test_points)
        for label, r in results
    ]
    columns = ("metric", "interpolation", "aggregation", "BD-rate", "overlap", "anchor points", "test points")
    console.show_table(f"{t.name} against {a.name}, {t.dataset}", columns, rows)


@app.command(rich_help_panel=PANEL)
def anchor(
    codec: Annotated[list[str], typer.Argument(help="jpeg, webp, jpeg2000, avif, jpegxl, hevc, vvc.")],
    images: Annotated[Path, typer.Option(help="Folder of pictures.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for one result file each.")],
    dataset: Annotated[str | None, typer.Option(help="Name of the data set; default: the folder's.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps what was measured, to resume from.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    r"""Measure classical codecs on a folder of pictures, for `bdrate` and `report` to compare with.

    Settings are in the result. JPEG 2000 and JPEG XL need imagecodecs, HEVC and VVC (intra) imageio-ffmpeg:
    both are in rdquant\[anchors].
    """
    from ..files.images import list_images
    from ..measure import run_anchor

    files, found = list_images(images), {}
    targets = {name: out / f"{dataset or images.name}-{name}.json" for name in codec}
    for target in targets.values():
        free(target, overwrite)
    for name, target in targets.items():
        with console.progress(name) as update:
            curve = run_anchor(name, files, dataset or images.name, update, cache)
        meta = {**curve.meta, "command": f"rdquant anchor {name} --images {images.name}"}
        dataclasses.replace(curve, meta=meta).save(target)
        found[name] = target
        if not console.settings.json:
            rates = [p.bpp for p in curve.points]
            console.say(f"{target}: {len(rates)} points of {min(rates):.3f} to {max(rates):.3f} bpp")
    if console.settings.json:
        console.show_json({name: str(target) for name, target in found.items()})


@app.command(rich_help_panel=PANEL)
def results(
    folder: Annotated[list[Path], typer.Argument(help="Folders, with all JSON below them, or files.")],
    sql: Annotated[str | None, typer.Option(help="A question; default: what there is, file by file.")] = None,
) -> None:
    r"""Ask result files in SQL: of evaluate, of anchor and of studies. Needs rdquant\[results] (DuckDB).

    Three tables. points: a row for each point of a curve, with file, dataset, name, label, fingerprint,
    weight_bits, activation_bits, quality, effort, bpp, psnr, ms_ssim, encode_s, decode_s, cpu, date, version.
    images: a row for each picture of a point. cells: a row for each cell of a study, with study, model,
    question, method, setting (W8A8, 8x), rate_percent, j_percent, bytes, seconds. DESCRIBE lists all columns:

    rdquant results RUN --sql "DESCRIBE points"

    rdquant results RUN --sql "SELECT setting, method, rate_percent FROM cells ORDER BY ALL"
    """
    from ..measure.query import SUMMARY, Results

    found = Results(folder)
    columns, rows = found.ask(SUMMARY if sql is None else sql)
    if console.settings.json:
        records = [dict(zip(columns, row, strict=True)) for row in rows]
        console.show_json({"rows": records, "skipped": [str(p) for p in found.skipped]})
    else:
        console.show_table(f"{len(found.files) - len(found.skipped)} result files", columns, rows)
    if found.skipped:
        names = ", ".join(p.name for p in found.skipped[:5]) + (", ..." if len(found.skipped) > 5 else "")
        console.say(
            f"{len(found.skipped)} of {len(found.files)} files left out, of no kind known here: {names}"
        )


@app.command(rich_help_panel=PANEL)
def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="Results of `evaluate` and of anchors, plans and tables of `allocate`, traces of `quantize "
            "--json`; or folders of them."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the page and figures.")] = Path(
        "report"
    ),
    title: Annotated[str, typer.Option(help="Of the page.")] = "rdquant report",
    images: Annotated[
        list[Path] | None, typer.Option(help="A picture to show side by side; repeatable. Needs --model.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="What codes --images.", autocompletion=zoo_names),
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="Anchors beside it, in as many bytes; default: jpeg, webp.")
    ] = None,
) -> None:
    r"""Make one page of results that needs no network: curves, BD-rates with confidence, every picture.

    Figures are also written as SVG. With --images and --model, pictures are shown beside anchors of as many
    bytes, with a divider, zoom and errors. Needs rdquant\[report].
    """
    from ..files.images import read_image
    from ..load import open_coder
    from ..report import matched, read_inputs, write_report

    if bool(images) != (model is not None):
        raise UsageError("--images and --model go together: which pictures, and what codes them")
    inputs = read_inputs(results)
    shown = []
    if images and model is not None:
        pictures = [(path.name, read_image(path)) for path in images]
        shown = matched(open_coder(model), pictures, against or ("jpeg", "webp"))
    page = write_report(inputs, out, title, "", shown)
    if console.settings.json:
        files = sorted(str(p) for p in [page, *out.glob("*.svg")])
        console.show_json({"page": str(page), "files": files, "bytes": page.stat().st_size})
    else:
        console.say(f"{page}: {console.Size(page.stat().st_size)}")


@app.command(rich_help_panel=PANEL)
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for files and the report.")] = Path("demo"),
) -> None:
    """Quantize the bundled codec, code photographs to real files, decode them, and write a report."""
    from ..study.demo import COLUMNS, run_demo

    with console.progress("demo") as update:
        rows, report = run_demo(out, update)
    if console.settings.json:
        console.show_json([dict(zip(COLUMNS, row, strict=True)) for row in rows])
    else:
        console.show_table("photographs through the quantized codec (real files)", COLUMNS, rows)
    console.say(f"report: {report}")
