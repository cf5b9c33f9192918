"""`tqgguf bench`: decode and prompt speed through llama-bench."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tqgguf import llamacpp
from tqgguf.cli import measuring as m
from tqgguf.cli import options as o
from tqgguf.cli.application import app
from tqgguf.cli.console import say, say_json
from tqgguf.cli.front import draw_speeds
from tqgguf.cli.plots import check_plot
from tqgguf.cli.tables import Printer, times
from tqgguf.llamacpp import Workload
from tqgguf.measure import bench as benchmark
from tqgguf.measure.bench import SpeedRow
from tqgguf.measure.eval import open_gguf

Prompt = Annotated[int, typer.Option("--n-prompt", "-p", min=0, metavar="N", help="Prompt tokens.")]
Decoded = Annotated[int, typer.Option("--n-gen", "-n", min=0, metavar="N", help="Decoded tokens.")]


@app.command("bench")
@o.spread
def bench_command(
    *,
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="GGUF files.")],
    added: m.Added,
    rounds: m.Rounds = 5,
    prompt: Prompt = 128,
    generate: Decoded = 64,
    threads: o.Threads = None,
    gpu_layers: m.GpuLayers = None,
    json: o.Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    markdown: o.Markdown = False,
    plot: m.Plot = None,
    force: o.Force = False,
    quiet: o.NoProgress = False,
) -> None:
    """Measure tokens per second, the files taking turns in every round; medians count.

    Example: tqgguf bench model-f16.gguf --baselines Q4_0,Q4_K_M --types tq-q4,tq-q3
    """
    check_plot(plot, inputs=models, force=force)
    if not prompt + generate:
        raise typer.BadParameter("--n-prompt 0 and --n-gen 0 leave nothing to measure")
    for model in models:
        open_gguf(model)
    llamacpp.find("llama-bench")  # before any file is made
    made = added.make(models[0], threads=threads, quiet=quiet)
    files = list(dict.fromkeys([*models, *made]))
    workload = Workload(prompt, generate, threads, gpu_layers)
    rows = benchmark.tabulate(m.run_rounds(files, workload, rounds=rounds, quiet=quiet))
    if plot:
        draw_speeds(rows, plot)
    if json:
        say_json({"rows": [asdict(row) for row in rows]})
    elif as_csv:
        say(_csv(rows))
    else:
        _say_rows(rows, Printer(markdown))


def _csv(rows: Sequence[SpeedRow]) -> str:
    text = io.StringIO()
    names = ["model", "bytes", "bpw", "pp", "tg", "pp_ratio", "tg_ratio"]
    table = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(row) for row in rows)
    return text.getvalue().rstrip("\n")


def _say_rows(rows: Sequence[SpeedRow], out: Printer) -> None:
    columns = ["model", "bytes", "bpw", "pp tok/s", "ratio", "tg tok/s", "ratio", "tg range"]
    cells = [
        [
            Path(row.model).name,
            f"{row.bytes:,}",
            f"{row.bpw:.3f}",
            _speed(row.pp),
            times(row.pp_ratio),
            _speed(row.tg),
            times(row.tg_ratio),
            " - ".join(map(_speed, row.tg_range or ())),
        ]
        for row in rows
    ]
    out.table(columns, cells)
    out.line(f"ratio: to {Path(rows[0].model).name}; pp reads a prompt, tg decodes")


def _speed(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"
