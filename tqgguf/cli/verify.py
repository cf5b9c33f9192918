"""`tqgguf verify`: a finished file against its original."""

from pathlib import Path
from typing import Annotated

import typer

from tqgguf.calibration.tokens import read_text, short_sequences
from tqgguf.cli import options as o
from tqgguf.cli.application import app
from tqgguf.cli.console import progress, say, say_json, say_table, warn
from tqgguf.errors import PlanError, TqggufError
from tqgguf.machine.devices import Device, find_device, on_device
from tqgguf.measure.verify import Check, require, verify
from tqgguf.models import Model, open_model
from tqgguf.network.equivalence import Difference, measure_difference, require_output
from tqgguf.network.forward import Tokens

_SHOWN = 10  # of the worst tensors


@app.command("verify")
def verify_command(
    quant: o.Quantized,
    original: Annotated[Path, typer.Argument(metavar="ORIGINAL", help="What it was made from.")],
    forward: Annotated[
        bool, typer.Option("--forward", help="Also run both on a short text and compare.")
    ] = False,
    threads: o.Threads = None,
    device: o.DeviceName = "cpu",
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Exit 0 only if QUANT is ORIGINAL up to its recorded rotation and rounding.

    Example: tqgguf verify model-TQ-Q4.gguf model-f16.gguf
    """
    where = find_device(device)
    if not forward and not where.is_cpu:
        raise PlanError("--device: only --forward computes there; add it")
    quantized = open_model(quant)
    total = sum(t.size for t in quantized.tensors.values())
    with progress(total, "verify", unit="w", quiet=quiet) as bar:
        source = open_model(original)
        checks = list(verify(quantized, source, threads=threads, advance=bar.update))
    difference = _difference(source, quantized, where) if forward else None
    if json:
        say_json(_document(checks, difference))
    elif not quiet:
        _say_worst(checks)
        if difference:
            say(
                f"run on a few tokens: logits differ by {difference.logits:.2g} of their spread, "
                f"mean KL divergence {difference.divergence:.2g}"
            )
    require(checks, quant)
    if difference:
        require_output(difference, quant)
    if not (json or quiet):
        say(f"{quant.name} is {original.name}: all {len(checks)} tensors agree")


def _difference(original: Model, other: Model, device: Device) -> Difference:
    tokens = _witness(original)

    def work(where: Device) -> Difference:
        return measure_difference(original, other, tokens, device=where)

    return on_device(device, work, "the networks", warn)


def _witness(model: Model) -> Tokens | None:
    """Some of the built-in text; None, for random tokens, where nothing can tokenize it.

    Random tokens are unlike all that a network was trained for, and calibrated files are further
    from the original there than on any text.
    """
    try:
        return short_sequences(model, read_text(model, None))[:2, :64]
    except TqggufError:
        return None


def _say_worst(checks: list[Check]) -> None:
    ranked = sorted(checks, key=lambda c: c.worst_block / c.allowed, reverse=True)
    rows = [
        [c.name, c.type, f"{c.rel_mse:.3g}", f"{c.worst_block:.3g}", f"{c.allowed:.3g}"]
        for c in ranked[:_SHOWN]
    ]
    say_table(["tensor (worst first)", "type", "relative MSE", "worst block", "allowed"], rows)


def _document(checks: list[Check], difference: Difference | None) -> dict[str, object]:
    """The JSON of verify; forward is null unless it was asked for."""
    return {
        "passed": all(c.passed for c in checks) and (not difference or difference.passed),
        "tensors": [_row(c) for c in checks],
        "forward": {"logits": difference.logits, "divergence": difference.divergence}
        if difference
        else None,
    }


def _row(check: Check) -> dict[str, object]:
    return {
        "name": check.name,
        "type": check.type,
        "rel_mse": check.rel_mse,
        "worst_block": check.worst_block,
        "worst_row": check.worst_row,
        "allowed": check.allowed,
        "passed": check.passed,
    }
