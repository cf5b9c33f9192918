"""Which file should I ship? Quality, size and speed of quantized files beside their original.

Quality is measured by llama-perplexity: the original's predictions on a text are computed once and
kept in the user's cache under the hash of everything they depend on, and so is what was measured of
a file: a script that was stopped goes on where it was.
"""

import json
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqgguf import llamacpp
from tqgguf.errors import FileFormatError, ToolError
from tqgguf.llamacpp import Divergence, NoResultError, NotFiniteError, Settings, Speed
from tqgguf.llamacpp.logits import distance, open_logits
from tqgguf.machine.cache import prune, user_cache
from tqgguf.machine.content import content_key
from tqgguf.models import Model, open_model
from tqgguf.models.damage import find_damage
from tqgguf.models.gguf import disk_bytes, shard_files
from tqgguf.output.whole import whole_file

NOISE = 1e-3  # at or below this maximum, 16-bit codes blur llama-perplexity's own divergence
KEPT_BYTES = 8 << 30  # predictions kept for later runs; the least recently used go first
DEFAULT_CONTEXT = 512
QUALITY = ("ppl", "kld_mean", "kld_p999", "kld_max", "same_top")


@dataclass(frozen=True)
class QualityRow:
    """One file against the original.

    bytes: on disk. bpw: bits per weight of the original, so that an untied head counts. ppl:
    perplexity. kld_*: KL divergence from the original in nats. same_top: per cent. pp, tg: prompt
    and decode tokens per second, if measured. pareto: see `mark_pareto`.
    """

    model: str
    bytes: int
    bpw: float
    ppl: float
    kld_mean: float
    kld_p999: float
    kld_max: float
    same_top: float
    pp: float | None = None
    tg: float | None = None
    pareto: bool = False


@dataclass(frozen=True)
class Original:
    """What the files are measured against, and the cached file with its predictions."""

    model: str
    bytes: int
    bpw: float
    ppl: float
    weights: int
    text: Path
    base: Path
    pp: float | None = None
    tg: float | None = None


def evaluate(
    original: Path, models: Sequence[Path], text: Path, settings: Settings
) -> list[QualityRow]:
    """Measure every model against the original on the text."""
    prepared = prepare_original(original, text, settings)
    return mark_pareto([measure_quality(prepared, model, settings) for model in models])


def default_context(path: Path) -> int:
    """Tokens per chunk: 512, or the model's own context where that is shorter."""
    length = open_gguf(path).get("{arch}.context_length", DEFAULT_CONTEXT)
    return min(DEFAULT_CONTEXT, int(length))


def check_files(models: Sequence[Path], text: Path) -> None:
    """Raise FileFormatError where a model or the text cannot be read."""
    for model in models:
        open_gguf(model)
    _check_text(text)


def _check_text(text: Path) -> None:
    if not text.is_file():
        raise FileFormatError(f"{text}: no such text file")


def prepare_original(path: Path, text: Path, settings: Settings) -> Original:
    """Compute the original's predictions on the text, unless they are in the cache."""
    model = open_gguf(path)
    _check_text(text)
    with _naming(path):
        base, ppl = _cached_base(path, text, settings)
    weights = sum(tensor.size for tensor in model.tensors.values())
    bpw = 8 * model.n_bytes / weights
    return Original(str(path), disk_bytes(path), bpw, ppl, weights, text, base)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Of several files, the one that a program failed on; and the tensor, where it holds NaN."""
    try:
        yield
    except (NoResultError, NotFiniteError) as error:
        error.args = (f"{path}: {find_damage(open_model(path)) or error}",)
        raise
    except ToolError as error:
        error.args = (f"{path}: {error}",)
        raise


def measure_quality(original: Original, path: Path, settings: Settings) -> QualityRow:
    """Measure one file on the text that the original was prepared with, unless that is known."""
    bits = 8 * open_gguf(path).n_bytes
    with _naming(path):
        found = _cached_divergence(original, path, settings)
    quality = {field: getattr(found, field) for field in QUALITY}
    return QualityRow(str(path), disk_bytes(path), bits / original.weights, **quality)


def with_speed(row: QualityRow, speed: Speed) -> QualityRow:
    """The row with a model's measured speed."""
    return replace(row, pp=speed.pp, tg=speed.tg)


def mark_pareto(rows: Sequence[QualityRow]) -> list[QualityRow]:
    """Mark the rows that no other row beats.

    A row is beaten by one that is at least as good in bytes, mean KL divergence and (where
    measured) decode speed, and better in one of them.
    """
    costs = [(row.bytes, row.kld_mean, -(row.tg or 0.0)) for row in rows]
    return [
        replace(row, pareto=not any(_beats(other, cost) for other in costs))
        for row, cost in zip(rows, costs, strict=True)
    ]


def _beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def open_gguf(path: Path) -> Model:
    """Open a model that llama.cpp can load: GGUF only."""
    if path.is_dir() or path.suffix == ".safetensors":
        raise FileFormatError(
            f"{path}: llama.cpp loads GGUF files; convert it first with: "
            f"tqgguf quantize {shlex.quote(str(path))} --type f16 --rotate none"
        )
    return open_model(path)


def _cached_divergence(original: Original, path: Path, settings: Settings) -> Divergence:
    """As it was measured before, if the same bytes were on the same predictions."""
    key = content_key(shard_files(path), original.base.name)
    kept = user_cache() / "divergences" / f"{key}.json"
    if (known := _kept_divergence(kept)) is not None:
        return known
    found = _divergence(original, path, settings)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(kept) as scratch:
        scratch.write_text(json.dumps(asdict(found)))
    return found


def _kept_divergence(kept: Path) -> Divergence | None:
    """What is kept there; None where it is not, or is damaged."""
    try:
        return Divergence(**json.loads(kept.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _divergence(original: Original, path: Path, settings: Settings) -> Divergence:
    """llama-perplexity's statistics, or ours where they are lost or drowned in its rounding."""
    try:
        found = llamacpp.divergence(path, original.base, settings)
    except NoResultError as error:
        if error.explained:
            raise
        return _own_divergence(original, path, settings)
    return found if found.kld_max > NOISE else _own_divergence(original, path, settings)


def _own_divergence(original: Original, path: Path, settings: Settings) -> Divergence:
    """Let the model predict the text as the original did, and compare the two files."""
    with _scratch(original.base) as other:
        ppl = llamacpp.write_base(path, original.text, other, settings)
        return Divergence(ppl, original.ppl, **vars(distance(original.base, other)))


def _cached_base(path: Path, text: Path, settings: Settings) -> tuple[Path, float]:
    used = (settings.context, settings.chunks, settings.gpu_layers)
    key = content_key([*shard_files(path), text], used, llamacpp.version())
    base = user_cache() / "logits" / f"{key}.kld"
    note = base.with_suffix(".ppl")
    ppl = _kept_perplexity(base, note)
    if ppl is None:
        base.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(base) as scratch, whole_file(note) as written:
            ppl = llamacpp.write_base(path, text, scratch, settings)
            written.write_text(f"{ppl}\n")
        prune(base.parent, limit=KEPT_BYTES, keep=key)
    os.utime(base)  # used now
    return base, ppl


def _kept_perplexity(base: Path, note: Path) -> float | None:
    """What is noted beside the predictions that are kept; None where either is damaged."""
    try:
        open_logits(base)
        said = note.read_text()
        return float(said) if said.endswith("\n") else None
    except (OSError, ValueError, ToolError):
        return None


@contextmanager
def _scratch(beside: Path) -> Iterator[Path]:
    """A file name of this process's own beside another; removed unless it was renamed."""
    path = beside.with_name(f"{beside.stem}.{os.getpid()}.partial")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
