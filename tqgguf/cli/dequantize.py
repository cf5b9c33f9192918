"""`tqgguf dequantize`: a finished file back in floating point."""

from pathlib import Path
from typing import Annotated

import typer

from tqgguf.cli import options as o
from tqgguf.cli.application import app
from tqgguf.cli.console import progress, say_written
from tqgguf.errors import PlanError
from tqgguf.formats import FLOATS
from tqgguf.machine.machine import Machine
from tqgguf.models import open_model
from tqgguf.pipeline import convert
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan
from tqgguf.rotation.restored import restored


@app.command("dequantize")
def dequantize_command(
    quant: o.Quantized,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")
    ],
    type: Annotated[
        str, typer.Option("--type", "-t", metavar="TYPE", help="f32, f16 or bf16.")
    ] = "f16",
    threads: o.Threads = None,
    force: o.Force = False,
    quiet: o.Quiet = False,
) -> None:
    """Decode a file to floating point in its original basis.

    Example: tqgguf dequantize model-TQ-Q4.gguf -o model-back-f16.gguf
    """
    if type.upper() not in FLOATS:
        raise PlanError(f"--type {type}: dequantize writes {', '.join(FLOATS)}")
    model = restored(open_model(quant))
    plan = make_plan(model, Options(type=type, rotate="none", allow_requantize=True))
    with progress(plan.n_bytes, output.name, quiet=quiet) as bar:
        machine = Machine(threads)
        for _ in convert(model, plan, output, machine=machine, force=force, advance=bar.update):
            pass
    say_written()
