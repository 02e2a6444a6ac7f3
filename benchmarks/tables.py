"""Write the figures of README.md and docs from the JSON results: between the markers, nothing by hand.

python benchmarks/tables.py           (--check: only say whether they are up to date)
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from pathlib import Path
from statistics import mean, median

from rdquant.measure import BDRate, Curve, bd_rate
from rdquant.measure.bootstrap import percent_text
from rdquant.study.ablation import shown
from rdquant.study.compare import table as comparison

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MARK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.S)


def zoo() -> str:
    """The zoo on Kodak, float and integers side by side."""
    rows = [
        "| model | float: bpp | PSNR | MS-SSIM | W8A8: bpp | PSNR | MS-SSIM | encode s | decode s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    floats, integers = (Curve.load(RESULTS / f"kodak-mean-scale-s{s}.json") for s in ("", "-w8a8"))
    for f, q in zip(floats.points, integers.points, strict=True):
        times = [median(getattr(i, k) or 0 for i in q.images) for k in ("encode_s", "decode_s")]
        rows.append(
            f"| {f.label} | {f.bpp:.3f} | {f.psnr:.2f} | {f.ms_ssim:.4f} "
            f"| {q.bpp:.3f} | {q.psnr:.2f} | {q.ms_ssim:.4f} | {times[0]:.2f} | {times[1]:.2f} |"
        )
    m = integers.meta["machine"]
    note = (
        f"Kodak, 24 pictures, means; bpp of whole files. Times are medians on {m['cpu']}, {m['threads']} "
        f"threads, {m['date']} (`kodak-mean-scale-s-w8a8.json`). W8A8: weights "
        f"{integers.meta['weight_bits']}; {integers.meta['granularity']}; "
        f"latents {integers.meta['latents']}; {integers.meta['scopes']}."
    )
    return "\n".join([*rows, "", note])


def bdrate() -> str:
    """BD-rates of the zoo against its anchors."""
    data = json.loads((RESULTS / "kodak-zoo-bdrate.json").read_text())
    rows = ["| curve | BD-rate (PSNR) [95 %] | overlap | points |", "|---|---|---|---|"]
    for name, r in data["bd_rate_psnr"].items():
        points = f"{r['test_points']} / {r['anchor_points']}"
        percent = BDRate(**r).text()
        rows.append(f"| {name} | {percent} | {r['low']:.1f}..{r['high']:.1f} dB | {points} |")
    note = (
        "Kodak, mean curves of whole files, PCHIP. JPEG: Pillow, 4:2:0, optimized; WebP: Pillow, method 6; "
        "JPEG 2000: OpenJPEG, 9/7; HEVC: x265, intra, 4:4:4, 10 bits, slow, tune psnr. In brackets: 95 % "
        "confidence, bootstrap over pictures. "
        "(`kodak-zoo-bdrate.json`)"
    )
    return "\n".join([*rows, "", note])


#: curves of rd-s: file, what it is
RD_S = {"float": "float", "w8a8": "W8A8", "w8a8-effort1": "W8A8, effort 1"}


def _rd_s(dataset: str = "kodak") -> dict[str, Curve]:
    paths = {k: RESULTS / f"{dataset}-rd-s-{k}.json" for k in RD_S}
    return {RD_S[k]: Curve.load(p) for k, p in paths.items() if p.exists()}


def rd_s() -> str:
    """rd-s by quality."""
    curves = _rd_s()
    head = ["quality", *(f"{label}: bpp, PSNR dB" for label in curves)]
    rows = []
    for i, point in enumerate(curves["float"].points):
        cells = [f"{c.points[i].bpp:.3f}, {c.points[i].psnr:.2f}" for c in curves.values()]
        rows.append([point.label.rpartition("@")[2], *cells])
    meta = curves["W8A8"].meta
    seconds = "; ".join(
        f"{label} {median(p.encode_s for p in c.points):.2f} ({c.meta['machine']['cpu']}, "
        f"threads: {c.meta['machine']['threads']}{', ' + t if (t := c.meta.get('timings')) else ''})"
        for label, c in curves.items()
    )
    note = (
        f"Kodak, 24 pictures, means; bpp of whole files; latents: {meta['latents']}. W8A8: weights "
        f"{meta['weight_bits']}, per output channel; activations {meta['activation_bits']}, "
        f"{meta['granularity']}; quantized: {meta['quantized']}; fine-tuned: {meta['finetune']}. "
        f"Seconds to encode a picture, medians over qualities: {seconds}. (`kodak-rd-s-*.json`)"
    )
    return "\n".join([*_table(head, rows), "", note])


def rd_s_bdrate(labels: tuple[str, ...] = tuple(RD_S)) -> str:
    """rd-s against its parent, a published curve and classical codecs."""
    data, tecnick = (
        json.loads((RESULTS / f"{d}-rd-s-bdrate.json").read_text()) for d in ("kodak", "tecnick")
    )
    published, rows = data.pop("against published mbt2018-mean"), []
    for label in labels:
        found = published[label]
        span = f"{found['from_db']:.1f}..{found['to_db']:.1f} dB"
        ends = f"{found['at_low']:+.1f} % to {found['at_high']:+.1f} % at the ends"
        rows.append([RD_S[label], "published mbt2018-mean", f"{found['bd_rate']:+.2f} % ({ends})", span, ""])
    for anchor, results in data.items():
        for label in labels:
            if isinstance(results, dict) and label in results:
                r = results[label]
                span = f"{r['low']:.1f}..{r['high']:.1f} dB"
                other = tecnick.get(anchor, {}).get(label)
                texts = [BDRate(**f).text() if f else "" for f in (r, other)]
                if other and other["test_points"] != r["test_points"]:
                    texts[1] += f" ({other['test_points']} qualities)"
                rows.append([RD_S[label], anchor.removeprefix("against "), texts[0], span, texts[1]])
    note = (
        "BD-rate (PSNR), mean curves of whole files, eight qualities unless said, PCHIP; the overlap is "
        "Kodak's. The published curve: six lambdas in float, as CompressAI gives them. In brackets: 95 % "
        "confidence, bootstrap over pictures. (`kodak-rd-s-bdrate.json`, `tecnick-rd-s-bdrate.json`)"
    )
    return "\n".join([*_table(["rd-s", "against", "Kodak", "overlap", "TecNick"], rows), "", note])


def rd_s_brief() -> str:
    """What is in the zoo."""
    return rd_s_bdrate(("w8a8", "w8a8-effort1"))


WIDTHS = ("W8A8", "W10A10", "W6A8", "W4A8")


def rd_s_hours() -> str:
    """J on the val split where each run of training was last validated."""
    found = json.loads((RESULTS / "rd-s-hours.json").read_text())
    ends = {row["run"]: row for row in found["rows"]}
    columns = ["log", "hours", "J at 0.0035", "0.013", "0.05"]
    rows = [
        [f"`{name}`", f"{row['hours']:.1f}", *(f"{j:.3f}" for j in row["J"].values())]
        for name, row in ends.items()
    ]
    hours = f"{found['total_hours']:.1f} hours of one core in all"
    note = f"Centre crops of 32 pictures of the val split, estimated bits; {hours}. (`rd-s-hours.json`)"
    return "\n".join([*_table(columns, rows), "", note])


def candidates() -> str:
    """What the zoo's codec of all rates was chosen from."""
    found = json.loads((RESULTS / "candidates.json").read_text())
    rows = []
    for name, row in found["rows"].items():
        J = [f"{v['J']:.3f}" for v in row["val"]]
        ms = [f"{row[f'decode_ms, {kind}']:.0f}" for kind in ("float", "W8A8")]
        log = (RESULTS / f"training/candidates/{name}.jsonl").read_text().splitlines()
        minutes = json.loads(log[-1])["cpu"] / 60
        kmac, steps = f"{row['kmac']['decoder']:.1f}", f"{row['steps']:,}"
        rows.append([name, row["about"], kmac, *ms, steps, f"{minutes:.0f}", *J])
    m = found["machine"]
    note = (
        f"J of {found['val_pictures']} centre crops of the val split, estimated bits. Milliseconds: decoding "
        f"{found['picture']} at quality {found['quality']}, file to pixels, medians in turns, float and W8A8 "
        f"({m['cpu']}, {m['threads']} threads, {m['date']}). "
        "(`candidates.json`; logs: `training/candidates`)"
    )
    columns = ["", "transforms", "kMAC", "ms, float", "W8A8", "steps", "minutes"]
    return "\n".join([*_table([*columns, "J at 0.0035", "0.013", "0.05"], rows), "", note])


def widths() -> str:
    """What each width costs, on both sets."""
    rows = ["| width | Kodak | TecNick | calibration of one model | peak memory |", "|---|---|---|---|---|"]
    r: dict = {}
    for width in (w for w in WIDTHS if (RESULTS / f"rdo-{w.lower()}.json").exists()):
        r = json.loads((RESULTS / f"rdo-{width.lower()}.json").read_text())
        cost = []
        for dataset in ("kodak", "tecnick"):
            parent, curve = (RESULTS / f"{dataset}-mean-scale-s{of}.json" for of in ("", f"-{width.lower()}"))
            cost.append(bd_rate(Curve.load(parent), Curve.load(curve)).text())
        runs = r["calibration"].values()
        seconds, memory = (median(c[k] for c in runs) for k in ("seconds", "peak_memory_mb"))
        rows.append(f"| {width} | {' | '.join(cost)} | {seconds / 60:.1f} min | {memory / 1024:.1f} GB |")
    note = (
        "BD-rate (PSNR) against the float parents, four points, PCHIP, whole files; every layer of g_a, h_a, "
        "h_s and g_s quantized (weights of h_s: 7 bits where others have 8), static ranges, weights per "
        "output channel, activations per channel and mixed. 96 pictures of the training set's val split "
        f"calibrate; medians over the four models, {r['machine']['threads']} threads; W6A8 and W4A8 were "
        "calibrated beside other work on the same cores. In brackets: 95 % confidence, bootstrap over "
        "pictures. (`rdo-*.json`; curves: `kodak-mean-scale-s-*.json`, `tecnick-mean-scale-s-*.json`)"
    )
    return "\n".join([*rows, "", note])


def growth() -> str:
    """Time and memory of a calibration."""
    if not (RESULTS / "calibration-growth.json").exists():
        return "Growth with the number of pictures: not measured yet (`benchmarks/growth.py`)."
    r = json.loads((RESULTS / "calibration-growth.json").read_text())
    rows = ["| calibration pictures | seconds | peak memory |", "|---|---|---|"]
    rows += [f"| {c['pictures']} | {c['seconds']:.0f} | {c['peak_memory_mb']:.0f} MB |" for c in r["rows"]]
    note = f"{r['model']}, {r['width']}, crops of 256x256, process start included (`calibration-growth.json`)"
    return "\n".join([*rows, "", note])


def rans() -> str:
    """Speed of the entropy coder."""
    r = json.loads((RESULTS / "rans.json").read_text())
    speed = r["million_symbols_per_second"]
    return (
        f"rANS, one thread, {r['symbols']:,} symbols at {r['bits_per_symbol']} bit: "
        f"{speed['encode']:.0f} million symbols/s encoding, {speed['decode']:.0f} decoding (`rans.json`)."
    )


def architectures() -> str:
    """What quantization costs codecs of each kind."""
    found = json.loads((RESULTS / "architectures.json").read_text())
    columns, rows = ["codec", "lambda", "W8A8", "W10A10", "increase of J, W8A8"], []

    def cell(width: dict, i: int) -> str:
        if "rate_increase_at_equal_psnr_percent" not in width:
            return "not measured"
        known = width.get("rate_increase_interval", [None] * (i + 1))[i]
        return percent_text(width["rate_increase_at_equal_psnr_percent"][i], known)

    for name, row in found["architectures"].items():
        for i, lambda_ in enumerate(row["lambdas"]):
            cells = [cell(row["widths"].get(w, {}), i) for w in columns[2:4]]
            rows.append(
                [
                    f"`{name}`",
                    f"{lambda_:g}",
                    *cells,
                    f"{row['widths']['W8A8']['J_increase_percent'][i]:+.2f} %",
                ]
            )
    notes = "".join(f"`{n}`: {r['note']}. " for n, r in found["architectures"].items() if "note" in r)
    note = (
        f"More rate at equal PSNR than the float codec: {found['pictures']} pictures of Kodak, whole files, "
        "each lambda by itself, a straight line through the float codec's two points. Weights per output "
        "channel, activations static per channel, all networks and tables, "
        f"{found['calibration_pictures']} calibration pictures, no gradients; some sums and ends: 12 bits "
        "([widths](quantization.md)). Small codecs, trained for an hour at most. "
        f"{notes}In brackets, where measured: 95 % confidence, bootstrap over pictures. "
        "(`architectures.json`)"
    )
    return "\n".join([*_table(columns, rows), "", note])


def serial() -> str:
    """Decoding with serial contexts."""
    times = json.loads((RESULTS / "serial.json").read_text())
    median = times["median_seconds"]
    return (
        f"Serial contexts (`mbt2018`, N={times['N']}, M={times['M']}): a picture of {times['picture']} is "
        f"decoded in {median['rdquant W8A8']:.2f} s, by CompressAI's model of the same widths in "
        f"{median['CompressAI']:.1f} s, in turns on one machine (`serial.json`)."
    )


def determinism() -> str:
    """What differs between configurations of one machine, for a codec of one rate and one of all."""
    return "\n\n".join(_determinism(n) for n in ("determinism", "determinism-rd-s"))


def _determinism(file: str) -> str:
    r = json.loads((RESULTS / f"{file}.json").read_text())
    kinds = list(next(iter(r["differences"].values())))
    rows = ["| configuration | pictures | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 2) + "|"]
    for name, row in r["differences"].items():
        cells = [f"{c['differ']:,}" + (f" (by {c['largest']})" if c["differ"] else "") for c in row.values()]
        rows.append(f"| {name} | {r['pictures'][name]} | " + " | ".join(cells) + " |")
    counts = ", ".join(f"{k}: {v['of']:,}" for k, v in next(iter(r["differences"].values())).items())
    gap, sets = r["approximate against exact"], r["command"].partition("--images ")[2].split(" --")[0]
    note = (
        f"Values that differ from those of `{r['against']}`, {r['pictures'][r['against']]} pictures of "
        f"{' and '.join(pair.partition('=')[0].capitalize() for pair in sets.split())}, "
        f"{r['model']}; in brackets the largest difference. Of {counts}. Approximate pixels "
        f"differ from exact ones in {100 * gap['differ'] / gap['of']:.1f} % of samples, by more than 1 in "
        f"{100 * gap['more than 1'] / gap['of']:.2g} %, by {gap['largest']} at most. {r['machine']['cpu']}, "
        f"{r['machine']['date']}. (`{file}.json`)"
    )
    return "\n".join([*rows, "", note])


def damage() -> str:
    """Damaged files, and fuzzing."""
    d, f = (json.loads((RESULTS / f"{n}.json").read_text()) for n in ("damage", "fuzz"))
    pictures = sum(sum(p.values()) for p in d["pictures_from_damage"].values())
    errors, minutes = d["cases"] - pictures, f["seconds"] / 60
    return (
        f"{d['cases']:,} damaged files, made of {len(d['files'])} small ones: {errors:,} errors of the "
        f"documented tree, {pictures} pictures (all of them lies about a size within the padding, with right "
        "checksums, in files without a pixel checksum), the slowest answer after "
        f"{d['slowest_seconds']:.2f} s, at most {d['peak_memory_mb']:.0f} MB for the whole process "
        f"(`damage.json`). Coverage-guided fuzzing: {f['executions']:,} executions in {minutes:.0f} minutes, "
        f"{f['findings']} findings, coverage from {f['coverage_points_at_start']} to {f['coverage_points']} "
        f"points, corpus of {f['corpus']} (`fuzz.json`)."
    )


def headline() -> str:
    """The README's one line of figures."""
    rate = json.loads((RESULTS / "kodak-zoo-bdrate.json").read_text())["bd_rate_psnr"]
    runs = json.loads((RESULTS / "bench.json").read_text())["runs"]
    most = max(runs, key=int)
    time = {way: row["decode"] for way, row in runs[most]["rows"]["768x512"].items()}
    cost = BDRate(**rate["mean-scale-s-w8a8 against float parent"]).text()
    own = json.loads((RESULTS / "kodak-rd-s-bdrate.json").read_text())["against float"]["w8a8"]
    return (
        f"- Eight bits cost {cost} of rate on Kodak where a model is for one rate, {BDRate(**own).text()} "
        "where one is for all (ends of transforms, and activations of the entropy path, have 12); "
        "decoding takes "
        f"{time['exact'] / time['float']:.2f} and {time['rd-s, exact'] / time['rd-s, float']:.2f} of the "
        f"float codecs' time on {most} threads of {runs[most]['machine']['cpu'].replace('(R)', '')} "
        "([figures](docs/results.md))."
    )


def decode() -> str:
    """Decoding and encoding beside other codecs."""
    stored = json.loads((RESULTS / "bench.json").read_text())
    runs, wide = stored["runs"], stored["untrained"]
    counts, most, middle = sorted(runs, key=int), max(runs, key=int), "768x512"
    last = runs[most]
    others = [size for size in last["rows"] if size != middle]
    columns = ["codec, ms", *(f"decoding, {n} thread{'s' * (n != '1')}" for n in counts)]
    columns += ["before the synthesis", "encoding", *(f"decoding {size}" for size in others), "bytes"]
    rows = []
    for way, row in last["rows"][middle].items():
        found = [runs[n]["rows"][middle][way]["decode"] for n in counts]
        found += [row.get("before synthesis"), row.get("encode")]
        found += [last["rows"][size][way]["decode"] for size in others]
        shown = ["" if v is None else f"{1e3 * v:.1f}" for v in found]
        rows.append([way, *shown, f"{row['bytes']:.0f}" if "bytes" in row else ""])

    def times(run: dict) -> str:
        own, other = (run["rows"][middle][way] for way in ("exact", "CompressAI"))
        return f"{other['decode'] / own['decode']:.1f} times and {other['encode'] / own['encode']:.1f} times"

    row = wide["rows"][middle]
    ratio = (
        f"Exact integers decode and encode {times(last)} as fast as CompressAI's floats of these widths; "
        f"with N={wide['N']} M={wide['M']}, both untrained, {times(wide)} "
        f"({1e3 * row['exact']['decode']:.0f} and {1e3 * row['exact']['encode']:.0f} ms, "
        f"`{wide['command']}`)."
    )
    note = (
        f"Medians, ways taking turns, each a process of its own; pictures of Kodak, {middle} unless said "
        f"otherwise, {last['model']}, {most} threads but for the column of 1; {last['machine']['cpu']}, "
        f"{last['machine']['date']}; CompressAI 1.2.8 with the same widths, untrained. (`bench.json`)"
    )
    return "\n".join([*_table(columns, rows), "", ratio, "", note])


def folder() -> str:
    """Whole folders through the command line."""
    r = json.loads((RESULTS / "folder.json").read_text())
    columns = ["pictures a second", "encode", "decode to PNG", "decode to PPM"]
    rows = [
        [model, *(f"{row[k]:.0f}" for k in ("encode", "png", "ppm"))]
        for model, row in r["pictures_a_second"].items()
    ]
    note = (
        f"{r['pictures']} pictures of 768x512 (Kodak's, several times), start of the command included; "
        f"{r['threads']} threads, {r['machine']['cpu']}, {r['machine']['date']}. (`folder.json`)"
    )
    return "\n".join([*_table(columns, rows), "", note])


def stages() -> str:
    """Steps of the synthesis, and the floor of their products."""
    r = json.loads((RESULTS / "stages.json").read_text())
    peak = ", ".join(f"{v:.0f} GMAC/s of {name}" for name, v in r["GMAC_a_second"].items())
    rows = []
    for model, networks in r["models"].items():
        for name, network in networks.items():
            floor = sum(row["floor_ms"] for row in network["rows"])
            most = max(network["rows"], key=lambda row: row["ms"])
            longest = f"{most['step']}: {most['ms']:.1f}, {most['floor_ms']:.1f}"
            share = f"{100 * floor / network['ms']:.0f} %"
            rows.append([model, name, f"{network['ms']:.1f}", f"{floor:.1f}", share, longest])
    columns = [
        "model",
        "network",
        "ms, 1 thread",
        "its products at the peak",
        "share",
        "longest step, its products",
    ]
    note = (
        f"The peak: {peak}, products of the same kernels that stay in the first cache. What is above it "
        "is gathering, requantization, GDN and compensated rounding. Best of rounds; "
        f"{r['picture']}; {r['machine']['cpu']}, {r['instructions']}, {r['machine']['date']}. (`stages.json`)"
    )
    return "\n".join([*_table(columns, rows), "", note])


def _table(columns: tuple[str, ...] | list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
        *(f"| {' | '.join(r)} |" for r in rows),
    ]


def _brackets(rows: list[list[str]]) -> str:
    """What is in brackets, where something is."""
    if not any("[" in cell for row in rows for cell in row):
        return ""
    return "In brackets: 95 % confidence, bootstrap over pictures. "


def ablation(table: str) -> str:
    """One table of the ablation."""
    r = json.loads((RESULTS / "ablation.json").read_text())
    t = r["tables"][table]
    lines = _table(t["columns"], shown(t["rows"], t["intervals"]))
    return "\n".join([*lines, "", f"{r['note']} (`ablation.json`, table `{table}`)"])


def allocate() -> str:
    """Mixed precision on the zoo, and uniform widths beside it."""
    r = json.loads((RESULTS / "allocate.json").read_text())
    plans = r["plans"]

    def cells(name: str) -> list[str]:
        found = plans[name]["bd_rate_psnr"]
        loss = "a curve that falls" if found["percent"] is None else BDRate(**found).text()
        return [f"{mean(plans[name]['times_smaller']):.2f}", loss]

    sizes = [[name, *cells(name)] for name in plans if name.endswith("x")]
    uniform = [name for name in plans if name.startswith("W")]
    columns = (
        "width",
        "bits of a weight in the file",
        "times smaller, uniform",
        "BD-rate",
        "mixed",
        "BD-rate",
    )
    widths = [
        [name, f"{mean(plans[name]['coded_bits']):.2f}", *cells(name),
         *(cells(f"as {name}") if f"as {name}" in plans else ("", ""))]
        for name in uniform
    ]  # fmt: skip
    note = (
        "Kodak, four points, PSNR, PCHIP, whole files, against the float parents; sizes are those of the "
        "model files (means over the four), against 4 bytes a parameter. Format of weights: "
        f"{r['weight_format']}; {r['granularity']}; activations {r['activation_bits']} bits; quantized: "
        f"{r['scopes']}. {r['calibration_pictures']} pictures calibrate, no gradients. Predicted sizes were "
        f"off by at most {r['predicted_size_error_percent']:.1f} %. {_brackets(widths)}(`allocate.json`)"
    )
    lines = [*_table(("plan", "times smaller", "BD-rate"), sizes), "", *_table(columns, widths)]
    return "\n".join([*lines, "", note])


def searches() -> str:
    """What each search of bit-widths finds and costs."""
    r = json.loads((RESULTS / "searches.json").read_text())
    rows = [
        [name, f"{s['plan']['size']:,}", percent_text(s["increase"], s["interval"], 100),
         f"{s['evaluations']:,}", f"{s['seconds']:.1f}"]
        for name, s in r["searches"].items()
    ]  # fmt: skip
    m = r["machine"]
    reached = [
        f"{name} was as good as {other} after {s['reached'][other][0]} evaluations and "
        f"{s['reached'][other][1]:.0f} seconds"
        for name, s in r["searches"].items()
        for other in ("predicted", "ours-quick")
        if other in s["reached"]
    ]
    note = (
        f"`{r['command']}`: {r['judges']} pictures of 256x256 judge; threads: {m['threads']}, {m['cpu']}, "
        f"{m['date']}. Those with a table count its evaluations, most of them partial; `predicted` counts "
        f"one, and takes a forward and a backward pass. Measured: {'; '.join(reached)}. "
        f"{_brackets(rows)}(`searches.json`)"
    )
    return "\n".join([*_table(("search", "bytes", "J", "model evaluations", "seconds"), rows), "", note])


def scales() -> str:
    """Why scales that J moved used to end worse."""
    r = json.loads((RESULTS / "scales.json").read_text())
    keys = ("j_calibration", "j_others", "relative_j_others")
    rows = [
        [
            row["scales"],
            *(f"{row[k]:.4f}" for k in keys),
            percent_text(row["rate_percent"], row["interval"]),
            f"{row['mean_factor']:.3f}",
        ]
        for row in r["rows"]
    ]
    head = ("scales", "J, calibration", "J, others", "relative J, others", "rate, others", "mean factor")
    note = (
        f"{r['model']}, W8A8, `--method mse`; {r['calibration_pictures']} calibration pictures and "
        f"{r['measured_pictures']} others of the val split, 256x256. Rate: more than the float parents' "
        "curve at equal PSNR, real files, one point. Gradients: 40 steps. (`scales.json`)"
    )
    return "\n".join([*_table(head, rows), "", note])


def compare() -> str:
    """All methods beside each other."""
    r = json.loads((RESULTS / "compare.json").read_text())
    lines = []
    for model in dict.fromkeys(c["model"] for c in r["cells"]):
        for sized in (False, True):
            cells = [c for c in r["cells"] if c["model"] == model and c["at"].startswith("W") != sized]
            head, rows = comparison(cells, model)
            if rows:
                lines += [f"`{model}`", "", *_table(tuple(head), [[f"{x}" for x in row] for row in rows]), ""]
    marks = sorted({m for c in r["cells"] for m in c["reduced"]})
    return "\n".join([*lines, f"{r['note']}: {'; '.join(marks)}. (`compare.json`)"])


def latents() -> str:
    """Latent quantizers on codecs that were trained for plain rounding."""
    r = json.loads((RESULTS / "latents.json").read_text())
    sets, speed = r["bd_rate_psnr"], r["viterbi"]
    rows = [[name, *(_percent(s[name]) for s in sets.values())] for name in r["quantizers"]]
    note = (
        f"BD-rate (PSNR) of whole files against plain rounding with the same integer models, {r['models']}, "
        f"four points, PCHIP; TCQ with step {r['step']}. Viterbi with 8 states: {speed['one_thread']:.1f} "
        f"million levels a second on one thread, {speed['two_threads']:.1f} on two; a 768x512 picture's "
        f"takes {1000 * speed['picture_seconds']:.0f} ms; decoding a trellis-coded picture took "
        f"{speed['decode_ratio']:.2f} times a plain one's. {r['machine']['cpu']}, {r['machine']['date']}. "
        "(`latents.json`)"
    )
    return "\n".join([*_table(("quantizer", *sets), rows), "", note])


def _percent(found: dict | None) -> str:
    """A BD-rate and its interval, where it has one; with its points, if they are not four."""
    if found is None:
        return "not measured"
    points = min(found["anchor_points"], found["test_points"])
    text = percent_text(found["percent"], found.get("interval"))
    return text + ("" if points == 4 else f" ({points} points)")


def retrain() -> str:
    """Retrained codecs against their parents."""
    r = json.loads((RESULTS / "retrain.json").read_text())
    sets = r["bd_rate_psnr"]
    names = list(dict.fromkeys(name for found in sets.values() for name in found))
    names = [name for name in names if not name.endswith(("jpeg", "webp"))]  # in `effort`
    rows = []
    for name in names:
        cells = [_percent(f.get(name)) for f in sets.values()]
        pictures = ", ".join(str(f[name]["pictures"]) for f in sets.values() if name in f)
        rows.append([name, *cells, pictures])
    lead = {k: [d for d in f["db_above_rdoq"] if d is not None] for k, f in sets["kodak"].items()
            if "db_above_rdoq" in f}  # fmt: skip
    over = "; ".join(f"{k}: {min(v):+.2f} to {max(v):+.2f} dB" for k, v in lead.items() if v)
    seconds = ", ".join(f"{s:.1f} s with effort {e}" for e, s in r["encode_seconds"].items())
    efforts, others = r["efforts"], r["efforts"].get("others")
    older = f"Effort 1 of others than {efforts['of']}: {others['rounds'][1]} rounds with lambda itself. "
    m = efforts["machine"]
    note = (
        f"BD-rate (PSNR) of whole files, mean curves, four points, PCHIP; anchor: {r['anchor']}, unless the "
        f"row names another. {r['models']}; W8A8 is quantized as the zoo is, the rest is float. At equal "
        f"rate above retrained RDOQ on Kodak, at the points within its rates: {over}. Encoding a picture of "
        f"Kodak took {seconds} (medians, W8A8, {m['cpu']}, {m['threads']} threads, {m['date']}). "
        f"{older if others else ''}In brackets, where measured: 95 % confidence, bootstrap over "
        "pictures. (`retrain.json`)"
    )
    return "\n".join([*_table(("retrained for", *sets, "pictures"), rows), "", note])


def effort() -> str:
    """The zoo's retrained integer models by effort."""
    r = json.loads((RESULTS / "retrain.json").read_text())
    sets, m = r["bd_rate_psnr"], r["efforts"]["machine"]
    against = {"the float parents": "", "JPEG": ", against jpeg", "WebP": ", against webp"}
    columns = [(d, f"{d}, against {a}", suffix) for d in sets for a, suffix in against.items()
               if d == "kodak" or not suffix]  # fmt: skip

    def cell(found: dict | None) -> str:
        return (
            f"{_percent({**found, 'anchor_points': 4})}, {found['pictures']} pictures"
            if found
            else _percent(None)
        )

    rows = []
    for level, seconds in r["encode_seconds"].items():
        name = "tcq8, W8A8" if level == "0" else f"tcq8, W8A8, effort {level}"
        cells = [cell(sets[d].get(name + suffix)) for d, _, suffix in columns]
        rows.append([level, f"{seconds:.1f}", *cells])
    note = (
        "BD-rate (PSNR) of whole files, mean curves, four points, PCHIP: `mean-scale-s-*-tcq8-w8a8` (weights "
        "8 bits per output channel, activations 8 bits static per channel; all networks and tables) against "
        "the float parents with plain rounding, and classical codecs. Seconds to encode a picture of Kodak: "
        f"medians, {m['cpu']}, {m['threads']} threads, {m['date']}. In brackets: 95 % confidence, bootstrap "
        "over pictures. (`retrain.json`)"
    )
    return "\n".join([*_table(("effort", "encode s", *(head for _, head, _ in columns)), rows), "", note])


#: runs of `benchmarks/retrain.py` that the studies compare: name, what it is
STUDIES = {
    "online-400": "TCQ8; decoder, hyper: 400 steps each, levels searched in each step",
    "stored-400": "the same, levels stored when each phase began",
    "stored-400-2": "stored, 2 rounds of 200 + 200 steps",
    "stored-400-4": "stored, 4 rounds of 100 + 100 steps",
    "tcq8": "TCQ8; decoder, hyper: 1000 steps each",
    "tcq8-all": "then the analysis too, 2000 steps at twice the rate",
    "rdoq": "RDOQ; decoder, hyper: 600 steps each",
    "uniform": "plain rounding; decoder, hyper: 600 steps each",
    "tcq8-of-switching": "all networks with switched quantizers, 1500 steps; then TCQ8; decoder, hyper: 1000",
    "tcq8-of-mixed": "all networks with plain rounding, 1500 steps; then TCQ8; decoder, hyper: 1000",
}


def retrain_studies() -> str:
    """What variants of retraining do to J on the val split."""
    val = json.loads((RESULTS / "retrain.json").read_text())["val"]
    plain = val["uniform-0130"]["rows"][0]["J"]
    rows = []
    for name, text in STUDIES.items():
        found = val[f"{name}-0130"]["rows"]
        phases = [f"{100 * (r['J'] / plain - 1):+.2f}{'' if r['kept'] else ' (undone)'}" for r in found]
        last = [r for r in found if r["kept"]][-1]
        rows.append([text, ", ".join(phases), f"{last['zeros']:.3f}", f"{last['drift']:.4f}"])
    head = ("lambda 0.0130", "J against plain rounding, %: start and after each phase", "zeros", "drift")
    weights = "; ".join(
        f"{name} {100 * (found['J'] / plain - 1):+.2f} %"
        for name, found in json.loads((RESULTS / "retrain.json").read_text())["on_rounded_weights"].items()
    )
    note = (
        "Val split, 96 pictures, estimated rates. Single runs. Quantized with 6 bits a weight without "
        f"gradients, after retraining on float weights and (on-w6) on rounded ones, J: {weights}. "
        "(`retrain.json`)"
    )
    return "\n".join([*_table(head, rows), "", note])


def updated(text: str) -> str:
    """``text`` with every marked block made anew."""
    makers = {
        "headline": headline, "zoo": zoo, "rd_s": rd_s, "rd_s_bdrate": rd_s_bdrate, "rd_s_brief": rd_s_brief,
        "rd_s_hours": rd_s_hours, "candidates": candidates,
        "bdrate": bdrate, "rans": rans, "serial": serial,
        "architectures": architectures,
        "widths": widths, "growth": growth, "determinism": determinism, "damage": damage,
        "decode": decode, "folder": folder, "stages": stages,
        "allocate": allocate, "searches": searches, "scales": scales, "compare": compare,
        "latents": latents, "retrain": retrain,
        "retrain_studies": retrain_studies, "effort": effort,
    }  # fmt: skip
    for table in (
        "strategy",
        "format",
        "range",
        "mixing",
        "rounding",
        "bias",
        "images",
        "what",
        "scope",
        "parts",
    ):
        makers[f"ablation_{table}"] = functools.partial(ablation, table)
    return MARK.sub(lambda m: f"{m[1]}{makers[m[2]]()}\n{m[3]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text()
        if (new := updated(text)) != text:
            stale.append(path.name)
            if not check:
                path.write_text(new)
    if check and stale:
        sys.exit(f"figures are not those of the results: {', '.join(stale)}; run python benchmarks/tables.py")


if __name__ == "__main__":
    main()
