"""`tqgguf quantize`: the main job."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from tqgguf.api import Job, decide
from tqgguf.calibration.calibrated import NOT_CALIBRATED, Calibrated
from tqgguf.calibration.imatrix import read_imatrix, write_imatrix
from tqgguf.cli import options as o
from tqgguf.cli.application import app
from tqgguf.cli.console import (
    plain_name,
    progress,
    quoted,
    say,
    say_fact,
    say_json,
    say_table,
    say_written,
    warn,
)
from tqgguf.cli.plan import Target, document, say_decisions, show_plan, warn_of_size
from tqgguf.cli.source import Folder, local_model, open_source
from tqgguf.errors import TqggufError
from tqgguf.llamacpp.converter import discard
from tqgguf.machine.machine import Machine
from tqgguf.machine.memory import readable_size
from tqgguf.models import model_files
from tqgguf.output.layout import Split
from tqgguf.output.names import default_output
from tqgguf.pipeline import Report
from tqgguf.planning.choices import Prepared, take_statistics
from tqgguf.planning.inputs import effort_of
from tqgguf.planning.plan import Options, Plan
from tqgguf.planning.recipes import recipe

# What the next level of effort would bring (docs/decisions/0023, 0024).
_NEXT = {
    "fast": "--effort good minds what matrices read: 0.3 to 0.6 of the divergence, thrice the time",
    "good": "--effort best rounds with error feedback: 0.4 to 1.0 of the divergence, least with "
    "--calibrate and a text like what the model will read",
}
_BUILTIN_SHAPE = (32, 512)  # about the built-in text, in most vocabularies
_SLOWEST = 5  # tensors that --verbose names in the end


@dataclass(frozen=True)
class Shown:
    """What is printed."""

    json: o.Json = False
    quiet: o.Quiet = False
    verbose: o.Verbose = False


@app.command("quantize")
@o.spread
def quantize_command(
    *,
    model: o.ModelPath,
    options: Options,
    save_imatrix: o.SaveImatrix = None,
    output: o.OutputFile = None,
    folder: Folder,
    split: Split,
    resume: o.Resume = False,
    force: o.Force = False,
    machine: Machine,
    dry_run: o.DryRun = False,
    shown: Shown,
) -> None:
    """Rotate and quantize a model into a GGUF file that stock llama.cpp runs.

    Example: tqgguf quantize model-f16.gguf --type tq-q4
    """
    others = _others(save_imatrix, options, goes_on=resume and not force)
    model = local_model(model, quiet=shown.quiet)
    if dry_run:
        opened = open_source(model, folder.vocab_from, quiet=shown.quiet)
        target = Target(output, split, others)
        show_plan(opened, options, machine, target, json=shown.json, quiet=shown.quiet)
        return
    place = output or default_output(model, recipe(options.type).name)
    opened = folder.open(model, place, resume=resume, force=resume or force, quiet=shown.quiet)
    job = decide(
        *(opened, options, place),
        machine=replace(machine, processes=True),
        split=split,
        resume=resume,
        force=force,
        others=others,
        inputs=[model, *([folder.vocab_from] if folder.vocab_from else [])],
    )
    if save_imatrix is not None:
        write_imatrix(save_imatrix, take_statistics(opened, job.prepared.inputs, machine))
    _run(job, shown)
    discard(opened)


def _others(save_imatrix: Path | None, options: Options, *, goes_on: bool) -> dict[str, Path]:
    """What is written besides the output, by its option; looked at before any work."""
    if save_imatrix is None:
        return {}
    if effort_of(options) == "fast":
        raise typer.BadParameter("--save-imatrix needs a text; leave out --effort fast")
    if goes_on and save_imatrix.is_file():
        read_imatrix(save_imatrix)  # a resumed run may find the one it wrote, and nothing else
    return {"--save-imatrix": save_imatrix}


def _run(job: Job, shown: Shown) -> None:
    plan, files, quiet = job.plan, job.files, shown.quiet
    if not quiet:
        _warn(plan, job.split)
    if not (quiet or shown.json):
        say_decisions(job.prepared, job.machine)
    began = time.perf_counter()
    calibrated, reports = _calibrate(job, quiet=quiet), []
    with progress(plan.n_bytes, files[0].name, quiet=quiet) as bar:
        for report in job.write(calibrated, advance=bar.update):
            reports.append(report)
            if shown.verbose:
                bar.note(f"[{len(reports)}/{len(plan.tensors)}] {_line(report)}")
    seconds = time.perf_counter() - began
    say_written()
    if shown.json:
        say_json(document(job.prepared, files, _bytes(files), reports) | {"seconds": seconds})
    elif not reports and not quiet:
        warn(f"{files[0]}: finished already; --force makes it again")
    elif not quiet:
        _say_summary(job, reports, seconds, slowest=_SLOWEST if shown.verbose else 0)


def _calibrate(job: Job, *, quiet: bool) -> Calibrated:
    """Round with error feedback where there is a text."""
    tokens = job.prepared.tokens
    if tokens is None:
        return NOT_CALIBRATED
    what = f"calibrating on {tokens.size:,} tokens"
    with progress(job.plan.rounded_weights, what, unit="w", quiet=quiet) as bar:
        made = job.calibrate(advance=bar.update)
    for note in () if quiet else made.notes:
        warn(note)
    return made


def _line(report: Report) -> str:
    """What the log says of one tensor."""
    shape, size = " x ".join(map(str, report.shape)), readable_size(report.n_bytes)
    error = f", error {report.rel_mse:.5f}" if report.rel_mse else ""
    if report.rel_mse_unrotated is not None:
        error += f" (unrotated {report.rel_mse_unrotated:.5f})"
    where = f" on {' '.join(report.workers)}" if report.workers else ""
    return f"{report.name}: {shape}, {report.type}, {size}{error}, {report.seconds:.2f} s{where}"


def _warn(plan: Plan, split: Split) -> None:
    """Options that change nothing, and one line for each kind of fallback."""
    warn_of_size(plan, split)
    for line in plan.idle:
        warn(f"warning: {line}")
    kinds: dict[tuple[str, str], list[str]] = {}
    for t in plan.fallbacks:
        kinds.setdefault((t.reason, t.type), []).append(t.name)
    for (reason, type), names in kinds.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        warn(f"warning: {names[0]}{others}: {reason}; {type} instead")


def _say_summary(job: Job, reports: list[Report], seconds: float, slowest: int) -> None:
    plan, path, source = job.plan, job.files[0], model_files(job.model.path)
    rows = [
        ["size", f"{readable_size(_bytes(source))} -> {readable_size(_bytes(job.files))}"],
        ["bits per weight", f"{plan.bpw:.2f}"],
        ["rotation", plan.rotation.mode],
        ["effort", _used(job.prepared)],
        ["mean relative error", _mean_error(reports, job.prepared)],
        ["time", f"{seconds:.1f} s"],
    ]
    rows += [
        ["slow", f"{r.name} ({r.type}): {r.seconds:.2f} s of a thread's time"]
        for r in sorted(reports, key=lambda r: -r.seconds)[:slowest]
    ]
    say_table([str(path.name), plan.recipe.name], rows)
    _say_next(job)
    if plan.rotation.mode != "tensor":
        say(f"run it:    llama-cli -m {quoted(path)}")
        line, name = quoted(f"FROM {path}"), plain_name(path.stem)
        say(f"or Ollama: echo {line} > Modelfile && ollama create {name} -f Modelfile")


def _say_next(job: Job) -> None:
    """What the next level of effort would bring and cost, if there is one that works here."""
    effort = job.prepared.inputs.effort
    if effort == "best" or not job.plan.rounded_weights:
        return
    cost = ""
    if effort == "good":
        from tqgguf.calibration.forecast import expectation  # slow to import

        try:
            cost = f"; {expectation(job.model, job.plan.matrix_types, _BUILTIN_SHAPE)}"
        except TqggufError:
            return
    say_fact("more:", f"{_NEXT[effort]}{cost}", width=11)


def _used(prepared: Prepared) -> str:
    """The effort, and what it went by."""
    inputs = prepared.inputs
    matrix = "an importance matrix" if inputs.imatrix else "no text"
    return f"{inputs.effort}, {inputs.text.name if inputs.text else matrix}"


def _mean_error(reports: list[Report], prepared: Prepared) -> str:
    """The mean over quantized tensors, beside the unrotated control, and what it does not tell."""
    lossy = [r.rel_mse for r in reports if r.rel_mse > 0]
    rotated = [r for r in reports if r.rel_mse_unrotated is not None]
    said, but = f"{_mean(lossy):.5f}" if lossy else "0", ""
    if rotated:
        control = _mean([r.rel_mse_unrotated or 0.0 for r in rotated])
        said = f"{_mean([r.rel_mse for r in rotated]):.5f} (unrotated control {control:.5f})"
        but = "; what counts is the outputs'"
    if lossy and prepared.tokens is not None:
        but = "; error feedback raises it and lowers the outputs'"
    return f"{said} of the weights{but}" if but else said


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def _bytes(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)
