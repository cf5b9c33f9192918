"""`tqgguf compare`: finished files against their original."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tqgguf.cli import measuring as m
from tqgguf.cli import options as o
from tqgguf.cli.application import app
from tqgguf.cli.console import progress, say_json
from tqgguf.cli.error_plots import draw_files
from tqgguf.cli.plots import check_plot
from tqgguf.cli.tables import Printer, json_values, number, short
from tqgguf.measure.compare import FileReport, TensorError, compare
from tqgguf.models import open_model

_TOP = 20  # tensors shown per file


@app.command("compare")
def compare_command(
    original: Annotated[Path, typer.Argument(metavar="ORIGINAL", help="The unquantized model.")],
    quants: Annotated[list[Path], typer.Argument(metavar="QUANT...", help="Finished files.")],
    top: Annotated[
        int, typer.Option(min=0, metavar="N", help="Tensors shown per file; 0 for all.")
    ] = _TOP,
    threads: o.Threads = None,
    plot: m.Plot = None,
    force: o.Force = False,
    markdown: o.Markdown = False,
    json: o.Json = False,
) -> None:
    """Errors of finished files, any quantizer's, against the original; rotations are undone.

    Example: tqgguf compare model-f16.gguf model-TQ-Q4.gguf model-Q4_K_M.gguf
    """
    check_plot(plot, inputs=[original, *quants], force=force)
    reference = open_model(original)
    models = [open_model(path) for path in quants]  # a bad file is found before the work begins
    found = []
    with progress(len(models), "compare", unit="file") as bar:
        for model in models:
            found.append(compare(reference, model, threads=threads))
            bar.update(1)
    if plot:
        draw_files(found, plot, title=original.name)
    if json:
        say_json(json_values({"original": original, "models": [_document(r) for r in found]}))
        return
    out = Printer(markdown)
    for report in found:
        _say_tensors(report, top, out)
    _say_totals(found, out)


def _document(report: FileReport) -> dict[str, Any]:
    return {
        "path": report.path,
        "bytes": report.n_bytes,
        "bpw": report.bpw,
        "rotation": report.rotation,
        "rel_mse": report.rel_mse,
        "rel_mse_seen": report.rel_mse_seen,
        "sqnr_db": report.sqnr_db,
        "max_abs_err": report.max_abs_err,
        "tensors": [_tensor(t) for t in report.tensors],
    }


def _tensor(t: TensorError) -> dict[str, Any]:
    named = asdict(t)
    return {"name": named.pop("name"), "bytes": named.pop("n_bytes")} | named | {
        "bpw": t.bpw,
        "sqnr_db": t.sqnr_db,
    }  # fmt: skip


def _say_tensors(report: FileReport, top: int, out: Printer) -> None:
    inexact = [t for t in report.tensors if t.rel_mse_seen > 1e-12]
    worst = sorted(inexact, key=lambda t: t.rel_mse_seen * t.size, reverse=True)
    shown = worst[:top] if top else worst
    columns = ["tensor", "type", "bpw", "MSE", "rel. MSE", "seen", "SQNR dB", "cosine", "max |err|"]
    rows = [
        [
            t.name,
            t.type,
            f"{t.bpw:.3f}",
            f"{t.mse:.2e}",
            f"{t.rel_mse:.5f}",
            f"{t.rel_mse_seen:.5f}",
            f"{t.sqnr_db:.2f}",
            f"{t.cosine:.6f}",
            number(t.max_abs_err),
        ]
        for t in shown
    ]
    if rows:
        out.table(columns, rows, title=report.path.name)
    if len(worst) > len(shown):
        out.line(f"... and {len(worst) - len(shown)} more tensors (--top 0 shows all)")
    exact = len(report.tensors) - len(inexact)
    if exact:
        out.line(f"{report.path.name}: {exact} tensors are exact (to float32 rounding)")


def _say_totals(found: Sequence[FileReport], out: Printer) -> None:
    columns = ["file", "rotation", "bytes", "bpw", "rel. MSE", "seen", "SQNR dB", "max |err|"]
    rows = [
        [
            short(r.path.name),
            r.rotation,
            f"{r.n_bytes:,}",
            f"{r.bpw:.3f}",
            f"{r.rel_mse:.5f}",
            f"{r.rel_mse_seen:.5f}",
            f"{r.sqnr_db:.2f}",
            number(r.max_abs_err),
        ]
        for r in found
    ]
    out.table(columns, rows, title="Totals")
    out.line(
        "Means over the weights of all matrices. Seen: weighted by the gains of the norms before "
        "them, for every file alike; undoing a fold divides by those gains and magnifies what the "
        "network never sees. Compare files by it."
    )
