"""The files of a ladder: what is asked for, decided for all of them before the first is written."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqgguf.api import Job
from tqgguf.calibration.imatrix import write_imatrix
from tqgguf.errors import OutputError, PlanError
from tqgguf.formats import FORMATS, is_float
from tqgguf.machine.content import content_key
from tqgguf.machine.machine import Machine
from tqgguf.machine.memory import readable_size
from tqgguf.models import Model, input_files, model_files
from tqgguf.output.files import check_output, partial_path
from tqgguf.output.layout import Split
from tqgguf.output.names import default_output
from tqgguf.planning.choices import prepare, take_statistics
from tqgguf.planning.inputs import SELF, effort_of
from tqgguf.planning.plan import Options
from tqgguf.planning.recipes import recipe
from tqgguf.publishing.record import Finished, Ladder, checksum
from tqgguf.version import __version__

_FOR_SIZES = "tq-q4"  # the recipe whose float tensors and roles a size begins with


@dataclass(frozen=True)
class Rung:
    """A size that is asked for: in the user's words, and as a plan's options."""

    asked: str
    options: Options

    @property
    def bits(self) -> float:
        """About how many bits a weight: what a recipe gives most matrices."""
        return FORMATS[recipe(self.options.type).matrix].bits_per_weight


def rungs(types: Sequence[str], sizes: Sequence[tuple[str, int]], shared: Options) -> list[Rung]:
    """What is asked for, each once; sizes are bytes beside the user's words for them.

    A float type is written as it is. Raises PlanError for an unknown type, and for a rotation that
    no stock llama.cpp undoes.
    """
    if shared.rotate == "tensor":
        raise PlanError(
            "--rotate tensor is for study: llama.cpp would compute noise from such files; expected "
            "auto, fused, values, scales or none"
        )
    found = {}
    for name in types:
        known = recipe(name)
        rotate = "none" if is_float(known.matrix) else shared.rotate
        found[known.name.lower()] = replace(shared, type=known.name.lower(), rotate=rotate)
    for text, n_bytes in sizes:
        found[text] = replace(shared, type=_FOR_SIZES, target_size=n_bytes)
    return [Rung(asked, options) for asked, options in found.items()]


def identity(model: Model, options: Options, vocab_from: Path | None = None) -> dict[str, str]:
    """What the files of one ladder have in common, whatever their sizes."""
    tokenizer = {"tokenizer": content_key([vocab_from])} if vocab_from else {}
    given = options.calibrate
    is_file = given is not None and str(given) != SELF
    text = content_key([given]) if given is not None and is_file else str(given or "built in")
    return {
        "tqgguf": f"version {__version__}",
        "model": f"content {content_key(model_files(model.path))}",
        "effort": effort_of(options),
        "text": text,
        "imatrix": content_key([options.imatrix]) if options.imatrix else "none",
        "tokens": str(options.calibrate_tokens or "as many as usual"),
        "rotate": options.rotate,
        **tokenizer,
    }


def settle_rotation(
    ladder: Ladder, model: Model, wanted: Sequence[Rung], machine: Machine
) -> list[Rung]:
    """The rungs with one rotation for all, so that one calibration serves them all.

    It is chosen for the one of fewest bits, where it matters most, and recorded.
    """
    rounded = [rung for rung in wanted if not is_float(recipe(rung.options.type).matrix)]
    if not ladder.rotation and rounded:
        least = min(rounded, key=lambda rung: rung.bits)
        prepared = prepare(model, least.options, machine)
        ladder.rotation = prepared.plan.rotation.mode
        ladder.why = prepared.why.removeprefix("--rotate auto: ") or "as asked"
        ladder.save()
    return [
        replace(rung, options=replace(rung.options, rotate=ladder.rotation))
        if rung in rounded
        else rung
        for rung in wanted
    ]


def missing(ladder: Ladder, wanted: Sequence[Rung]) -> list[Rung]:
    """The rungs of which there is no finished file."""
    return [
        rung
        for rung in wanted
        if rung.asked not in ladder.files
        or not ladder.is_whole(ladder.files[rung.asked].file, ladder.files[rung.asked].sha256)
    ]


def forget_lost(ladder: Ladder, wanted: Sequence[Rung]) -> list[str]:
    """Strike files that are gone or changed, and not to be made again, from the record."""
    asked = {rung.asked for rung in wanted}
    others = [file for key, file in ladder.files.items() if key not in asked]
    lost = [file for file in others if not ladder.is_whole(file.file, file.sha256)]
    for file in lost:
        del ladder.files[file.asked]
    if lost:
        ladder.save()
    return [file.file for file in lost]


def decide_all(
    ladder: Ladder, model: Model, wanted: Sequence[Rung], machine: Machine
) -> dict[str, Job]:
    """Decide every file that is to be made, before the first is. Raises OutputError, PlanError."""
    jobs: dict[str, Job] = {}
    taken = {f.file: f.asked for f in ladder.files.values()}
    for rung in wanted:
        prepared = prepare(model, rung.options, machine)
        name = default_output(model.origin, prepared.plan.recipe.name).name
        if taken.setdefault(name, rung.asked) != rung.asked:
            raise PlanError(
                f"{ladder.folder / name}: would be made for {taken[name]} and for {rung.asked}; "
                "leave one of them out"
            )
        path = ladder.folder / name
        check_output(path, inputs=input_files(model.path), force=True)
        anew = rung.asked in ladder.files  # it was changed, or lost
        jobs[rung.asked] = Job(
            *(prepared, path, (path,), machine, Split()), resume=not anew, force=anew
        )
    return jobs


def check_space(folder: Path, jobs: Sequence[Job]) -> None:
    """Refuse to begin what would not fit. Raises OutputError."""
    needed = sum(job.plan.n_bytes for job in jobs)
    partial = [partial_path(job.path) for job in jobs]
    ours = sum(
        p.stat().st_blocks * 512 for p in partial if p.exists()
    )  # reserved by an earlier run
    free = shutil.disk_usage(folder).free + ours
    if needed > free:
        raise OutputError(
            f"{folder}: the files take {readable_size(needed)}, but only {readable_size(free)} are "
            "free; ask for fewer, or choose a folder on another disk"
        )


def finish(ladder: Ladder, rung: Rung, job: Job, seconds: float) -> Finished:
    """Record a file that has just been written."""
    done = Finished(
        asked=rung.asked,
        file=job.path.name,
        type=job.plan.recipe.name,
        bytes=job.path.stat().st_size,
        bpw=job.plan.bpw,
        sha256=checksum(job.path),
        seconds=seconds,
        options=spelled(rung.options),
        told=_told(rung, job),
    )
    ladder.add(done)
    return done


def _told(rung: Rung, job: Job) -> tuple[str, ...]:
    """What the file was calibrated on, if it was rounded; of paths the names alone."""
    if is_float(job.plan.recipe.matrix):
        return ()
    text = job.prepared.inputs.text
    notes = "\n".join(job.prepared.inputs.notes)
    for path in (text.name if text else "", str(rung.options.imatrix or "")):
        notes = notes.replace(path, Path(path).name)
    return tuple(notes.splitlines())


def spelled(options: Options) -> str:
    """The options as one would type them for `quantize`; of files the names alone."""
    given = [f"--type {options.type}"] if options.target_size is None else []
    given += [f"--target-size {options.target_size}"] if options.target_size is not None else []
    given += [f"--rotate {options.rotate}"]
    if options.calibrate is not None:
        given += [f"--calibrate {options.calibrate.name}"]
    elif options.effort is not None:
        given += [f"--effort {options.effort}"]
    given += [f"--imatrix {options.imatrix.name}"] if options.imatrix is not None else []
    given += ["--allow-requantize"] if options.allow_requantize else []
    if options.calibrate_tokens is not None:
        given += [f"--calibrate-tokens {options.calibrate_tokens}"]
    return " ".join(given)


def write_importance(ladder: Ladder, job: Job) -> None:
    """Write the importance matrix of the text that was used, unless it is there."""
    if ladder.imatrix and ladder.is_whole(ladder.imatrix["file"], ladder.imatrix["sha256"]):
        return
    if job.prepared.inputs.text is None:
        return
    path = ladder.folder / default_output(job.model.origin, "imatrix").name
    write_imatrix(path, take_statistics(job.model, job.prepared.inputs, job.machine))
    ladder.imatrix = {"file": path.name, "sha256": checksum(path)}
    ladder.save()
