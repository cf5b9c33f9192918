"""`tqgguf eval`: which of these files should I ship?"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tqgguf import llamacpp
from tqgguf.cli import measuring as m
from tqgguf.cli import options as o
from tqgguf.cli.application import app
from tqgguf.cli.console import progress, say_json
from tqgguf.cli.front import draw_front
from tqgguf.cli.plots import check_plot
from tqgguf.cli.tables import Printer
from tqgguf.llamacpp import Settings, Speed, Workload
from tqgguf.measure import eval as evaluate
from tqgguf.measure.eval import Original, QualityRow

Unquantized = Annotated[
    Path, typer.Argument(metavar="ORIGINAL", help="The model before quantization, a .gguf file.")
]


@dataclass(frozen=True)
class Reading(m.Measuring):
    """How the text is read, whether speed is measured, and with how much of the machine."""

    context: m.ContextSize = None
    chunks: m.Chunks = None
    bench: m.AlsoBench = False
    rounds: m.Rounds = m.ROUNDS
    threads: o.Threads = None
    gpu_layers: m.GpuLayers = None

    @property
    def workload(self) -> Workload:
        """What llama-bench does."""
        return Workload(threads=self.threads, gpu_layers=self.gpu_layers)


@app.command("eval")
@o.spread
def eval_command(
    *,
    original: Unquantized,
    text: Annotated[Path, typer.Option(metavar="TEXT", help="Held-out text to predict.")],
    models: Annotated[
        list[Path] | None, typer.Argument(metavar="QUANT...", help="Quantized files.")
    ] = None,
    added: m.Added,
    measured: Reading,
    json: o.Json = False,
    markdown: o.Markdown = False,
    plot: m.Plot = None,
    force: o.Force = False,
    quiet: o.NoProgress = False,
) -> None:
    """Compare quantized files: size, perplexity, KL divergence, speed; the best are marked.

    Quality comes from llama-perplexity, speed from llama-bench (both: make llama.cpp).

    Example: tqgguf eval model-f16.gguf model-TQ-Q4.gguf model-TQ-Q3.gguf --text book.txt
    """
    check_plot(plot, inputs=[original, text, *(models or [])], force=force)
    evaluate.check_files([original, *(models or [])], text)
    if not (models or added):
        raise typer.BadParameter("no file to compare: give some, or --baselines, or --types")
    measured.check_rounds()
    llamacpp.find("llama-perplexity")  # before any file is made
    settings = measured.settings(original, measured.threads, measured.gpu_layers)
    made = added.make(original, threads=measured.threads, quiet=quiet)
    files = list(dict.fromkeys([*(models or []), *made]))
    base, rows = _measure(original, files, text, settings, quiet=quiet)
    if measured.bench:
        base, rows = _with_speed(base, rows, measured, quiet=quiet)
    rows = evaluate.mark_pareto(rows)
    if plot:
        draw_front(rows, plot)
    if json:
        say_json(_document(base, rows))
    else:
        _say_rows(base, rows, Printer(markdown))


def _measure(
    original: Path, models: Sequence[Path], text: Path, settings: Settings, *, quiet: bool
) -> tuple[Original, list[QualityRow]]:
    rows = []
    with progress(1 + len(models), "quality", unit="file", quiet=quiet) as bar:
        base = evaluate.prepare_original(original, text, settings)
        bar.update()
        for model in models:
            rows.append(evaluate.measure_quality(base, model, settings))
            bar.update()
    return base, rows


def _with_speed(
    base: Original, rows: Sequence[QualityRow], measured: Reading, *, quiet: bool
) -> tuple[Original, list[QualityRow]]:
    paths = [Path(base.model), *(Path(row.model) for row in rows)]
    samples = m.run_rounds(paths, measured.workload, rounds=measured.rounds, quiet=quiet)
    speeds = {speed.model: speed for speed in llamacpp.summarize(samples)}
    timed = [evaluate.with_speed(row, speeds[row.model]) for row in rows]
    own: Speed = speeds[base.model]
    return replace(base, pp=own.pp, tg=own.tg), timed


def _document(base: Original, rows: Sequence[QualityRow]) -> dict[str, Any]:
    """The JSON of eval; its keys are a contract."""
    original = {k: v for k, v in asdict(base).items() if not isinstance(v, Path)}
    return {"original": original, "text": str(base.text), "rows": [asdict(row) for row in rows]}


def _say_rows(base: Original, rows: Sequence[QualityRow], out: Printer) -> None:
    columns = ["model", "bytes", "bpw", "PPL", "KLD mean", "KLD 99.9%", "KLD max", "same top %"]
    if base.tg is not None:
        columns += ["pp tok/s", "tg tok/s"]
    table = [_original_cells(base), *(_cells(row) for row in rows)]
    out.table([*columns, "best"], table)
    if any(row.pareto for row in rows):
        out.line("* no other file here is as small, as close to the original and as fast")


def _original_cells(base: Original) -> list[str]:
    return [
        f"{Path(base.model).name} (original)",
        f"{base.bytes:,}",
        f"{base.bpw:.3f}",
        f"{base.ppl:.4f}",
        *[""] * 4,
        *_speed_cells(base),
        "",
    ]


def _cells(row: QualityRow) -> list[str]:
    return [
        Path(row.model).name,
        f"{row.bytes:,}",
        f"{row.bpw:.3f}",
        f"{row.ppl:.4f}",
        *(f"{value:.3g}" for value in (row.kld_mean, row.kld_p999, row.kld_max)),
        f"{row.same_top:.2f}",
        *_speed_cells(row),
        "*" if row.pareto else "",
    ]


def _speed_cells(row: QualityRow | Original) -> Iterator[str]:
    return (f"{speed:,.1f}" for speed in (row.pp, row.tg) if speed is not None)
