"""How fast do the files decode? Finished ones, and ours beside llama-quantize's of one model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqgguf import llamacpp
from tqgguf.llamacpp import Sample, Speed
from tqgguf.machine.cache import user_cache
from tqgguf.machine.content import content_key
from tqgguf.machine.machine import Machine
from tqgguf.measure.eval import open_gguf
from tqgguf.models import Model
from tqgguf.models.gguf import disk_bytes, shard_files
from tqgguf.output.whole import whole_file
from tqgguf.pipeline import convert
from tqgguf.planning.choices import prepare
from tqgguf.planning.plan import Options
from tqgguf.planning.recipes import recipe

SHAPE = ("block_count", "embedding_length", "vocab_size")


@dataclass(frozen=True)
class SpeedRow:
    """One file: bytes on disk, bits per weight, tokens per second.

    pp, tg: reading a prompt and decoding, medians over rounds; *_ratio: to the first file's;
    *_range: slowest and fastest round. None where not measured.
    """

    model: str
    bytes: int
    bpw: float
    pp: float | None
    tg: float | None
    pp_ratio: float | None
    tg_ratio: float | None
    pp_range: tuple[float, float] | None
    tg_range: tuple[float, float] | None


def tabulate(samples: Iterable[Sample]) -> list[SpeedRow]:
    """One row per model of interleaved runs, the first model being the baseline."""
    gathered = list(samples)
    weights = _weights(gathered)
    return [_row(speed, weights[speed.model]) for speed in llamacpp.summarize(gathered)]


def baseline(source: Path, type: str, *, threads: int | None = None) -> Path:
    """llama-quantize's file of this type; made once and kept in the user's cache.

    A type that the source has already is the source itself.
    """
    folder = user_cache() / "bench" / content_key(shard_files(source), *llamacpp.version())
    path = folder / f"{_stem(source)}-{type.upper()}.gguf"
    if type.upper() in _types(source):
        return source
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as scratch:
            llamacpp.quantize_file(source, scratch, type.upper(), threads=threads)
    return path


def ours(
    source: Path,
    type: str,
    *,
    rotate: str = "auto",
    effort: str | None = None,
    threads: int | None = None,
) -> Path:
    """Our file of this recipe or type; made once by this code and kept in the user's cache.

    effort: fast or good (None), which is what `tqgguf quantize` does unless told otherwise.
    """
    folder = user_cache() / "bench" / content_key(shard_files(source), rotate, effort)
    path = folder / f"{_stem(source)}-TQ-{recipe(type).name.removeprefix('TQ-')}.gguf"
    made_by = path.with_suffix(".made")
    code = content_key(code_files())
    if path.is_file() and made_by.is_file() and made_by.read_text() == code:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    made_by.unlink(missing_ok=True)
    _make(open_gguf(source), Options(type=type, rotate=rotate, effort=effort), path, threads)
    with whole_file(made_by) as scratch:
        scratch.write_text(code)
    return path


def _make(model: Model, options: Options, path: Path, threads: int | None) -> None:
    machine = Machine(threads)
    prepared = prepare(model, options, machine)
    plan, importance = prepared.plan, prepared.importance
    for _ in convert(
        prepared.model, plan, path, importance=importance, machine=machine, force=True
    ):
        pass


def code_files() -> list[Path]:
    """All that decides which bytes this package writes."""
    package = Path(__file__).parents[1]
    return sorted(p for p in package.rglob("*") if p.suffix in (".py", ".txt"))


def _types(source: Path) -> set[str]:
    """The types of a file's matrices: {"F16"} for an F16 file."""
    return {t.type for t in open_gguf(source).tensors.values() if len(t.shape) > 1}


def _stem(source: Path) -> str:
    return source.stem.removesuffix("-f16").removesuffix("-F16")


def _row(speed: Speed, weights: int) -> SpeedRow:
    measured = {k: v for k, v in vars(speed).items() if k not in ("tensor_bytes", "weights")}
    bits = 8 * speed.tensor_bytes / weights
    return SpeedRow(bytes=disk_bytes(Path(speed.model)), bpw=bits, **measured)


def _weights(samples: Sequence[Sample]) -> dict[str, int]:
    """Weights by which a file's bits are divided: the fewest among files of one model.

    So that an untied head, which adds weights and bytes, counts as a cost.
    """
    shapes = {s.model: _shape(open_gguf(Path(s.model))) for s in samples}
    return {
        model: min(s.weights for s in samples if shapes[s.model] == shape)
        for model, shape in shapes.items()
    }


def _shape(model: Model) -> tuple[object, ...]:
    return (model.architecture, *(model.get("{arch}." + key) for key in SHAPE))
