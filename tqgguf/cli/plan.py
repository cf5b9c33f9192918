"""`tqgguf plan`: what `quantize` decides, and how both tell it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqgguf.cli import options as o
from tqgguf.cli.application import app
from tqgguf.cli.console import about, say, say_fact, say_json, say_table, warn
from tqgguf.cli.source import local_model, open_source
from tqgguf.machine.machine import Machine
from tqgguf.machine.memory import readable_size
from tqgguf.models import Model
from tqgguf.output.layout import Split
from tqgguf.output.names import default_output
from tqgguf.pipeline import Report, output_files
from tqgguf.planning.choices import Prepared, is_quick, prepare
from tqgguf.planning.duration import writing_seconds
from tqgguf.planning.plan import Options, Plan, PlannedTensor
from tqgguf.rotation.steps import Step


@app.command("plan")
@o.spread
def plan_command(
    *, model: o.ModelPath, options: Options, vocab_from: o.VocabFrom = None, json: o.Json = False
) -> None:
    """Show type, rotation and size of every tensor without touching a weight.

    Example: tqgguf plan model-f16.gguf --type tq-q3
    """
    opened = open_source(local_model(model), vocab_from)
    show_plan(opened, options, Machine(), Target(), json=json)


@dataclass(frozen=True)
class Target:
    """Where a plan's output would go; others: files besides, by the options that name them."""

    output: Path | None = None
    split: Split = Split()
    others: Mapping[str, Path] = field(default_factory=dict)

    def files(self, prepared: Prepared) -> list[Path]:
        """The files in order."""
        path = self.output or default_output(prepared.model.path, prepared.plan.recipe.name)
        return output_files(prepared.model, prepared.plan, path, self.split)


def show_plan(
    model: Model,
    options: Options,
    machine: Machine,
    target: Target,
    *,
    json: bool,
    quiet: bool = False,
) -> None:
    """What quantize would decide; of a large model, as much as its header tells.

    quiet: only whether it would be refused.
    """
    prepared = prepare(model, options, machine, measure=is_quick(model))
    if not quiet:
        for option, path in target.others.items():
            warn(f"note: {option} {path}: nothing is written by --dry-run")
        warn_of_size(prepared.plan, target.split)
    if json:
        say_json(document(prepared, target.files(prepared), prepared.plan.n_bytes, []))
    elif not quiet:
        _say(prepared, machine, target.files(prepared))


def warn_of_size(plan: Plan, split: Split) -> None:
    """A tensor that is larger than its file should be."""
    largest = max(plan.tensors, key=lambda t: t.n_bytes)
    if split.max_size is not None and largest.n_bytes > split.max_size:
        warn(
            f"warning: {largest.name} takes {largest.n_bytes:,} bytes, more than --split-max-size "
            f"{split.max_size:,}: its file is larger"
        )


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
        ("size", f"{readable_size(prepared.file_bytes)}, {plan.bpw:.2f} bits per weight"),
        ("time", prepared.calibration or about(writing_seconds(plan, machine))),
    ]
    for label, line in lines:
        say_fact(label, line)


def _say(prepared: Prepared, machine: Machine, files: Sequence[Path]) -> None:
    plan = prepared.plan
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
    say_decisions(prepared, machine)
    for line in plan.idle:
        say(line)
    for file in files:
        say_fact("file", file.name)


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
