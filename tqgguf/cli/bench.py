"""`tqgguf bench`: decode and prompt speed through llama-bench."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tqgguf import benchmark, llamacpp
from tqgguf.benchmark import Row
from tqgguf.cli import options as o
from tqgguf.cli.application import app
from tqgguf.cli.console import progress, say, say_json
from tqgguf.cli.evaluate import GpuLayers, Markdown, Plot, Rounds
from tqgguf.cli.front import draw_speeds
from tqgguf.cli.plots import check_plot
from tqgguf.cli.tables import Output, factor
from tqgguf.llamacpp import Workload


@app.command("bench")
def bench_command(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="GGUF files.")],
    baselines: Annotated[
        str, typer.Option(metavar="TYPES", help="Also llama-quantize's of the first: Q4_0,Q4_K_M")
    ] = "",
    types: Annotated[
        str, typer.Option(metavar="TYPES", help="Also ours of the first: tq-q4,tq-q3")
    ] = "",
    rounds: Rounds = 5,
    prompt: Annotated[int, typer.Option("--n-prompt", "-p", min=0, help="Prompt tokens.")] = 128,
    generate: Annotated[int, typer.Option("--n-gen", "-n", min=0, help="Decoded tokens.")] = 64,
    threads: o.Threads = None,
    gpu_layers: GpuLayers = None,
    json: o.Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    markdown: Markdown = False,
    plot: Plot = None,
    force: o.Force = False,
    quiet: o.Quiet = False,
) -> None:
    """Measure tokens per second, the files taking turns in every round; medians count.

    Example: tqgguf bench model-f16.gguf --baselines Q4_0,Q4_K_M --types tq-q4,tq-q3
    """
    check_plot(plot, force=force)
    if not prompt + generate:
        raise typer.BadParameter("--n-prompt 0 and --n-gen 0 leave nothing to measure")
    llamacpp.find("llama-bench")  # before any file is made
    files = _files(models, _split(baselines), _split(types), threads, quiet=quiet)
    rows = _run(files, Workload(prompt, generate, threads, gpu_layers), rounds, quiet=quiet)
    if plot:
        draw_speeds(rows, plot)
    if json:
        say_json({"rows": [asdict(row) for row in rows]})
    elif as_csv:
        say(_csv(rows))
    else:
        _say_rows(rows, Output(markdown))


def _split(types: str) -> list[str]:
    return [name.strip() for name in types.split(",") if name.strip()]


def _files(
    models: Sequence[Path],
    baselines: Sequence[str],
    types: Sequence[str],
    threads: int | None,
    *,
    quiet: bool,
) -> list[Path]:
    """The files given, then the asked-for ones of the first, each once."""
    files = list(models)
    with progress(len(baselines) + len(types), "files", unit="file", quiet=quiet) as bar:
        for make, names in ((benchmark.baseline, baselines), (benchmark.ours, types)):
            for name in names:
                files.append(make(models[0], name, threads=threads))
                bar.update()
    return list(dict.fromkeys(files))


def _run(files: Sequence[Path], work: Workload, rounds: int, *, quiet: bool) -> list[Row]:
    samples = []
    with progress(rounds * len(files), "speed", unit="run", quiet=quiet) as bar:
        for sample in llamacpp.rounds(files, work, count=rounds):
            samples.append(sample)
            bar.update()
    return benchmark.summarize(samples)


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    names = ["model", "bytes", "bpw", "pp", "tg", "pp_ratio", "tg_ratio"]
    table = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(row) for row in rows)
    return text.getvalue().rstrip("\n")


def _say_rows(rows: Sequence[Row], out: Output) -> None:
    columns = ["model", "bytes", "bpw", "pp tok/s", "ratio", "tg tok/s", "ratio", "tg range"]
    cells = [
        [
            Path(row.model).name,
            f"{row.bytes:,}",
            f"{row.bpw:.3f}",
            _speed(row.pp),
            factor(row.pp_ratio),
            _speed(row.tg),
            factor(row.tg_ratio),
            " - ".join(map(_speed, row.tg_range or ())),
        ]
        for row in rows
    ]
    out.table(columns, cells)
    out.line(f"ratio: to {Path(rows[0].model).name}; pp reads a prompt, tg decodes")


def _speed(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"
