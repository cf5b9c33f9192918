"""`tqgguf plan`: what `quantize` decides, and how both tell it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqgguf.cli import options as o
from tqgguf.cli.application import app
from tqgguf.cli.console import about, say, say_fact, say_json, say_table
from tqgguf.cli.source import local_model, open_source
from tqgguf.machine.machine import Machine
from tqgguf.machine.memory import readable_size
from tqgguf.models import Model
from tqgguf.output.names import default_output
from tqgguf.pipeline import Report
from tqgguf.planning.choices import Prepared, is_quick, prepare
from tqgguf.planning.duration import writing_seconds
from tqgguf.planning.plan import Options, PlannedTensor
from tqgguf.rotation.steps import Step


@app.command("plan")
@o.spread
def plan_command(
    *, model: o.Model, options: Options, vocab_from: o.VocabFrom = None, json: o.Json = False
) -> None:
    """Show type, rotation and size of every tensor without touching a weight.

    Example: tqgguf plan model-f16.gguf --type tq-q3
    """
    show_plan(open_source(local_model(model), vocab_from), options, None, json=json)


def show_plan(
    model: Model, options: Options, output: Path | None, *, json: bool, quiet: bool = False
) -> None:
    """What quantize would decide; of a large model, as much as its header tells.

    quiet: only whether it would be refused.
    """
    prepared = prepare(model, options, measure=is_quick(model))
    if quiet and not json:
        return
    _say(prepared, output or default_output(model.path, prepared.plan.recipe.name), json=json)


def say_decisions(prepared: Prepared, machine: Machine) -> None:
    """What is about to be done, a line for each decision."""
    plan, inputs = prepared.plan, prepared.inputs
    counts = Counter(t.type for t in plan.tensors)
    types = ", ".join(f"{count} {type}" for type, count in counts.most_common())
    how = prepared.why.removeprefix("--rotate auto: ") or plan.rotation.mode
    known = {prepared.why, prepared.calibration, *inputs.notes}
    lines = [
        ("rotation", how),
        *(("", note) for note in plan.notes if note not in known),
        *(("text", note) for note in inputs.notes or ["none is used"]),
        ("types", f"{plan.recipe.name}: {types}"),
        ("size", f"{readable_size(plan.n_bytes)}, {plan.bpw:.2f} bits per weight"),
        ("time", prepared.calibration or about(writing_seconds(plan, machine))),
    ]
    for label, line in lines:
        say_fact(label, line)


def _say(prepared: Prepared, path: Path, *, json: bool) -> None:
    plan = prepared.plan
    if json:
        say_json(document(prepared, [path], plan.n_bytes, []))
        return
    rows = [
        [
            t.name,
            " x ".join(map(str, t.shape)),
            t.source_type,
            t.type,
            f"{t.n_bytes:,}",
            _steps(t.sides.columns),
            _steps(t.sides.rows),
            t.reason,
        ]
        for t in plan.tensors
    ]
    columns = ["tensor", "shape", "from", "to", "bytes", "input side", "output side", "why"]
    say_table(columns, rows)
    say_decisions(prepared, Machine())
    for line in plan.idle:
        say(line)
    say_fact("file", path.name)


def _steps(steps: tuple[Step, ...]) -> str:
    """The steps of a side without the names of their vectors."""
    return " ".join(step.verb for step in steps)


def document(
    prepared: Prepared, files: Sequence[Path], n_bytes: int, reports: list[Report]
) -> dict[str, Any]:
    """The JSON of quantize and plan; its keys are a contract."""
    plan, inputs = prepared.plan, prepared.inputs
    measured = {r.name: r for r in reports}
    return {
        "output": str(files[0]),
        "files": [str(file) for file in files],
        "recipe": plan.recipe.name,
        "bytes": n_bytes,
        "bpw": plan.bpw,
        "effort": inputs.effort,
        "text": inputs.text.name if inputs.text else None,
        "rotation": {
            "mode": plan.rotation.mode,
            "kind": plan.rotation.kind,
            "block": plan.rotation.block,
            "value_block": plan.rotation.value_block,
            "seed": plan.rotation.seed,
        },
        "notes": [*plan.notes, *plan.idle],
        "tensors": [_tensor(t, measured.get(t.name)) for t in plan.tensors],
    }


def _tensor(t: PlannedTensor, report: Report | None) -> dict[str, Any]:
    return {
        "name": t.name,
        "type": t.type,
        "shape": t.shape,
        "bytes": t.n_bytes,
        "bpw": t.bpw,
        "columns": [str(step) for step in t.sides.columns],
        "rows": [str(step) for step in t.sides.rows],
        "reason": t.reason,
        "rel_mse": report.rel_mse if report else None,
        "rel_mse_unrotated": report.rel_mse_unrotated if report else None,
        "seconds": report.seconds if report else None,
    }
