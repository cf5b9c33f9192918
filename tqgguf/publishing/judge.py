"""Measuring the files of a ladder, each once: quality on a text, and speed."""

import platform
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tqgguf import llamacpp
from tqgguf.llamacpp import Sample, Settings, Workload
from tqgguf.llamacpp.logits import open_tokens
from tqgguf.machine.cache import prune, user_cache
from tqgguf.machine.content import content_key
from tqgguf.machine.machine import Machine
from tqgguf.measure import eval as evaluate
from tqgguf.measure.eval import QUALITY, Original, QualityRow
from tqgguf.models import Model, model_files, open_model
from tqgguf.output.names import default_output
from tqgguf.pipeline import convert
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan
from tqgguf.publishing.record import Ladder

_KEPT_BYTES = 64 << 30  # originals kept for later runs; the least recently used go first


def original_gguf(model: Model, machine: Machine) -> Path:
    """The model as llama.cpp loads it: itself, or what it is in GGUF, kept in the user's cache."""
    if model.path.suffix == ".gguf":
        return model.path
    type = _usual_type(model)
    said = sorted((name, value.raw) for name, value in model.metadata.items())
    key = content_key(model_files(model.path), said)
    folder = user_cache() / "originals" / key
    path = folder / default_output(model.path, type).name
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        plan = make_plan(model, Options(type=type, rotate="none"))
        for _ in convert(model, plan, path, machine=machine, force=True):
            pass
        prune(folder.parent, limit=_KEPT_BYTES, keep=key)
    return path


def _usual_type(model: Model) -> str:
    """The type that most weights have."""
    sizes: dict[str, int] = {}
    for tensor in model.tensors.values():
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.size
    return max(sizes, key=sizes.__getitem__)


def record_original(ladder: Ladder, path: Path, text: Path, settings: Settings) -> Original:
    """The original's predictions, from the cache if they are there, and the record of them.

    What was measured against others is forgotten.
    """
    base = evaluate.prepare_original(path, text, settings)
    chunks, context = open_tokens(base.base).shape
    judged = {"key": base.base.stem, "text": text.name, "chunks": chunks, "context": context}
    if ladder.judged.get("key") != judged["key"]:
        ladder.files = {k: replace(f, quality=None) for k, f in ladder.files.items()}
    ladder.judged = judged
    type = _usual_type(open_model(path))
    ladder.original |= {"type": type, "bytes": base.bytes, "bpw": base.bpw, "ppl": base.ppl}
    ladder.save()
    return base


def judge(
    ladder: Ladder, base: Original, settings: Settings, *, advance: Callable[[], object]
) -> None:
    """Measure the files that have not been measured on this text."""
    for file in ladder.ordered():
        if file.quality is None:
            row = evaluate.measure_quality(base, ladder.folder / file.file, settings)
            ladder.add(replace(file, quality={name: getattr(row, name) for name in QUALITY}))
        advance()


def untimed(ladder: Ladder, workload: Workload, *, rounds: int) -> list[Path]:
    """The files to be timed together: all of them, or none if that was done."""
    sums = [f.sha256 for f in ladder.ordered()]
    key = content_key((), sums, workload, rounds, _processor(), *llamacpp.version("llama-bench"))
    if ladder.timed.get("key") == key:
        return []
    ladder.timed = {"key": key, "rounds": rounds, "processor": _processor()}
    return [ladder.folder / f.file for f in ladder.ordered()]


def note_speeds(ladder: Ladder, samples: Iterable[Sample]) -> None:
    """Record the medians of what was timed together."""
    speeds = {Path(s.model).name: s for s in llamacpp.summarize(samples)}
    for file in ladder.files.values():
        found = speeds[file.file]
        ladder.files[file.asked] = replace(file, speed={"pp": found.pp, "tg": found.tg})
    ladder.save()


def quality_rows(ladder: Ladder) -> list[QualityRow]:
    """The measured files as `eval` has them, the best marked."""
    rows = [
        QualityRow(
            model=str(ladder.folder / file.file),
            bytes=file.bytes,
            bpw=file.bpw,
            **{name: file.quality[name] for name in QUALITY},
            **(file.speed or {}),
        )
        for file in ladder.ordered()
        if file.quality
    ]
    return evaluate.mark_pareto(rows)


def _processor() -> str:
    """What the machine says of its processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
