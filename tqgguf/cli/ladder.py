"""`tqgguf ladder`: several sizes of a model, measured, with the page that tells of them."""

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tqgguf.api import Job
from tqgguf.cli import measuring as m
from tqgguf.cli import options as o
from tqgguf.cli.application import app
from tqgguf.cli.console import progress, say, say_json, say_table, say_written, warn
from tqgguf.cli.front import draw_front
from tqgguf.cli.ladder_options import Measured, Page, Wanted
from tqgguf.cli.source import Folder, local_model
from tqgguf.errors import TqggufError
from tqgguf.llamacpp import Workload
from tqgguf.llamacpp.converter import discard
from tqgguf.machine.machine import Machine
from tqgguf.machine.memory import readable_size
from tqgguf.measure.eval import Original
from tqgguf.models import Model
from tqgguf.models.download import hub_name
from tqgguf.publishing import card, judge
from tqgguf.publishing import ladder as making
from tqgguf.publishing.ladder import Rung
from tqgguf.publishing.record import (
    PICTURE,
    Ladder,
    check_card,
    open_ladder,
    publishable,
    write_card,
    write_sums,
)
from tqgguf.publishing.upload import send

_RESUME = "continue with --resume"  # of quantize's words after an accident


@app.command("ladder")
@o.spread
def ladder_command(
    *,
    model: o.ModelPath,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder.")],
    wanted: Wanted,
    folder: Folder,
    measured: Measured,
    page: Page,
    machine: Machine,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Make several sizes of a model, measure them, and write the page that tells of them.

    What is finished is kept: the same command goes on where it was interrupted.

    Example: tqgguf ladder model-f16.gguf -o out --calibrate calib.txt --eval held-out.txt
    """
    rungs = wanted.rungs()
    measured.check()
    page.check(asks=sys.stdin.isatty())
    source = local_model(model, quiet=quiet)
    opened = folder.open(source, output, resume=True, force=True, quiet=quiet)
    ladder = open_ladder(output, making.identity(opened, wanted.shared, folder.vocab_from))
    check_card(ladder, force=page.force)
    work = _Work(ladder, opened, replace(machine, processes=True), quiet)
    with _going_on(ladder):
        base = work.look_at_original(measured)
        work.make(rungs)
        work.measure(base, measured)
    words = _words(opened, model, page, _command(model, ladder, wanted, folder, measured, page))
    _write_page(ladder, opened, words)
    say_written()
    discard(opened)
    commit = _send(ladder, page, quiet=quiet)
    if json:
        say_json(_document(ladder) | {"commit": commit})
    elif not quiet:
        _say(ladder, words)


@dataclass(frozen=True)
class _Work:
    """A ladder that is being made, shown as it goes."""

    ladder: Ladder
    model: Model
    machine: Machine
    quiet: bool

    def look_at_original(self, measured: Measured) -> Original | None:
        """The original's predictions come first: a text that is too short is found here."""
        if measured.text is None:
            return None
        with progress(1, "the original", unit="file", quiet=self.quiet) as bar:
            path = judge.original_gguf(self.model, self.machine)
            settings = measured.settings(path, self.machine.threads)
            base = judge.record_original(self.ladder, path, measured.text, settings)
            bar.update()
        return base

    def make(self, wanted: Sequence[Rung]) -> None:
        """Every file that is not there yet."""
        for name in making.forget_lost(self.ladder, wanted):
            warn(f"warning: {name}: is gone or was changed, so the page leaves it out")
        lacking = making.missing(self.ladder, wanted)
        for rung in wanted:
            if rung not in lacking:
                self._tell(f"{self.ladder.files[rung.asked].file}: is there")
        alike = making.settle_rotation(self.ladder, self.model, lacking, self.machine)
        if alike:
            self._tell(f"rotation of all: {self.ladder.why or 'none, nothing is rounded'}")
        jobs = making.decide_all(self.ladder, self.model, alike, self.machine)
        making.check_space(self.ladder.folder, list(jobs.values()))
        for number, rung in enumerate(alike, 1):
            job = jobs[rung.asked]
            size = readable_size(job.plan.n_bytes)
            self._tell(f"{job.path.name}: {size}, {job.plan.bpw:.2f} bits, {number} of {len(jobs)}")
            making.write_importance(self.ladder, job)
            self._make(rung, job)

    def _make(self, rung: Rung, job: Job) -> None:
        began = time.perf_counter()
        total, n_bytes = job.plan.rounded_weights, job.plan.n_bytes
        calibrates = job.prepared.tokens is not None
        with progress(total, "calibrating", unit="w", quiet=self.quiet or not calibrates) as bar:
            calibrated = job.calibrate(advance=bar.update)
        with progress(n_bytes, "writing", quiet=self.quiet) as bar:
            for _ in job.write(calibrated, advance=bar.update):
                pass
        making.finish(self.ladder, rung, job, time.perf_counter() - began)

    def measure(self, base: Original | None, measured: Measured) -> None:
        """Quality and speed of every file, as far as that was not done."""
        if base is not None:
            settings = measured.settings(Path(base.model), self.machine.threads)
            with progress(len(self.ladder.files), "quality", unit="file", quiet=self.quiet) as bar:
                judge.judge(self.ladder, base, settings, advance=bar.update)
        if measured.bench:
            workload = Workload(threads=self.machine.threads)
            paths = judge.untimed(self.ladder, workload, rounds=measured.rounds)
            if paths:
                samples = m.run_rounds(paths, workload, rounds=measured.rounds, quiet=self.quiet)
                judge.note_speeds(self.ladder, samples)

    def _tell(self, line: str) -> None:
        if not self.quiet:
            warn(line)


@contextmanager
def _going_on(ladder: Ladder) -> Iterator[None]:
    """What is kept after an accident is what the same command goes on with."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"{ladder.folder}: interrupted; {len(ladder.files)} files are finished, and the same "
            "command goes on with the others"
        ) from None
    except TqggufError as error:
        error.args = tuple(str(x).replace(_RESUME, "the same command does") for x in error.args)
        raise


def _command(
    model: Path, ladder: Ladder, wanted: Wanted, folder: Folder, measured: Measured, page: Page
) -> str:
    """The command that makes all that is there; of files the names alone."""
    files = ladder.files.values()
    plain, sizes = ([f.asked for f in files if f.is_sized is sized] for sized in (False, True))
    given: dict[str, Any] = {
        "-o": ladder.folder.name,
        "--types": ",".join(plain),
        "--sizes": ",".join(sizes),
        "--effort": wanted.effort,
        "--calibrate": wanted.calibrate and wanted.calibrate.name,
        "--calibrate-tokens": wanted.calibrate_tokens,
        "--imatrix": wanted.imatrix and wanted.imatrix.name,
        "--rotate": wanted.rotate if wanted.rotate != "auto" else None,
        "--vocab-from": folder.vocab_from and folder.vocab_from.name,
        "--converter": folder.converter and folder.converter.name,
        "--eval": measured.text and measured.text.name,
        "--ctx": measured.context,
        "--chunks": measured.chunks,
        "--base-model": page.base_model,
        "--quantized-by": page.quantized_by if page.quantized_by != "tqgguf" else None,
    }
    words = [str(word) for pair in given.items() if pair[1] for word in pair]
    switches = ["--allow-requantize"] if wanted.allow_requantize else []
    switches += ["--bench", "--rounds", str(measured.rounds)] if measured.bench else []
    return shlex.join(["tqgguf", "ladder", _named(model), *words, *switches])


def _write_page(ladder: Ladder, model: Model, words: card.Words) -> None:
    write_sums(ladder)
    rows = judge.quality_rows(ladder)
    if rows:
        draw_front(rows, ladder.folder / PICTURE)
    write_card(ladder, card.render(ladder, model, words))


def _send(ladder: Ladder, page: Page, *, quiet: bool) -> str | None:
    """Upload after asking; the commit's address, None if nobody wants it or the answer is no."""
    if page.upload is None:
        return None
    names = publishable(ladder)
    n_bytes = sum((ladder.folder / name).stat().st_size for name in names)
    what = f"{len(names)} files, {readable_size(n_bytes)}, to {page.upload}"
    if not page.yes and not typer.confirm(f"Send {what}?", err=True):
        warn(f"nothing was sent; {ladder.folder} holds all of it")
        return None
    commit = send(page.upload, ladder.folder, names, quiet=quiet)
    if not quiet:
        warn(f"sent {what}: {commit}")
    return commit


def _words(opened: Model, model: Path, page: Page, command: str) -> card.Words:
    base_model = page.base_model or card.base_model(opened)
    name = base_model.rpartition("/")[2] if base_model else card.model_name(opened)
    return card.Words(name, _named(model), base_model, page.quantized_by, command)


def _named(model: Path) -> str:
    """What the model is called in commands: a name on the hub, of files the names alone."""
    name = None if model.exists() else hub_name(str(model))
    return str(name) if name else model.name


def _document(ladder: Ladder) -> dict[str, Any]:
    """The JSON of ladder; its keys are a contract."""
    return {
        "folder": str(ladder.folder),
        "rotation": ladder.rotation,
        "original": ladder.original,
        "judged": ladder.judged,
        "files": [asdict(file) for file in ladder.ordered()],
    }


def _say(ladder: Ladder, words: card.Words) -> None:
    say_table(*card.table(ladder, short=True))
    for file, need in card.advice(ladder):
        say(f"with {readable_size(need.total)} of free memory: {file.file}")
    if words.base_model is None:
        say("the card names no base_model, for nobody told: --base-model ORG/NAME")
    say(f"card:      {ladder.folder / 'README.md'}")
