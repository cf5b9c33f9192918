"""The page of a model's repository: README.md with its front matter, made of a ladder's record.

Every figure comes from the record, which was measured on these very files.
"""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import yaml

from tqgguf.machine.memory import readable_size
from tqgguf.models import Model, open_model
from tqgguf.models.hub import cached_repository, display_name
from tqgguf.network.memory import Memory, memory
from tqgguf.publishing.record import PICTURE, SUMS, Finished, Ladder
from tqgguf.rotation.recorded import read_rotation
from tqgguf.rotation.words import in_words
from tqgguf.version import __version__

_SOURCES = ("general.source.huggingface.repository", "general.source.repo_url", "general.repo_url")


@dataclass(frozen=True)
class Words:
    """What a card says besides what was measured.

    source: what the model is called in commands. base_model: org/name on the hub, None where nobody
    knows. command: as it was typed.
    """

    name: str
    source: str
    base_model: str | None
    quantized_by: str
    command: str


def base_model(model: Model) -> str | None:
    """The repository that a model is, by the hub's cache or its own header; None if untold.

    general.base_model is not it: that is what the model was trained from.
    """
    repository = cached_repository(model.origin)
    if repository is not None:
        return "/".join(filter(None, repository))
    told = next((str(model.get(key)) for key in _SOURCES if model.get(key)), "")
    parts = told.removeprefix("https://").rstrip("/").split("/")
    return "/".join(parts[-2:]) if len(parts) >= 2 else None


def model_name(model: Model) -> str:
    """What the model calls itself, or its file's name."""
    return str(model.get("general.name") or display_name(model.origin))


def render(ladder: Ladder, model: Model, words: Words) -> str:
    """The whole page."""
    parts = [
        f"---\n{_front_matter(model, words)}---\n",
        f"# {words.name}: GGUF\n",
        f"Files of {_original(words)} that llama.cpp, Ollama and LM Studio run as they are, "
        f"made by tqgguf {__version__}.\n",
        *_advice(ladder),
        "## Files\n",
        *_table(ladder),
        *_measured(ladder),
        *_how(ladder, words),
    ]
    return "\n".join(parts)


def _original(words: Words) -> str:
    return f"`{words.base_model}`" if words.base_model else words.name


def _front_matter(model: Model, words: Words) -> str:
    """YAML as the hub reads it; what the model does not tell is left out."""
    keys: dict[str, Any] = {
        "base_model": words.base_model,
        "base_model_relation": "quantized" if words.base_model else None,
        "quantized_by": words.quantized_by,
        "license": model.get("general.license"),
        "license_name": model.get("general.license.name"),
        "license_link": model.get("general.license.link"),
        "language": model.get("general.languages"),
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys(["gguf", "tqgguf", *(model.get("general.tags") or [])])),
    }
    told = {key: value for key, value in keys.items() if value}
    return str(yaml.safe_dump(told, sort_keys=False, allow_unicode=True))


def advice(ladder: Ladder) -> list[tuple[Finished, Memory]]:
    """What to take with how much memory, least first: nothing that a smaller file does better.

    Files that were not measured count as better the larger they are.
    """
    needs = [(f, memory(open_model(ladder.folder / f.file))) for f in ladder.ordered()]
    known = sorted(((f, m) for f, m in needs if m), key=lambda pair: pair[1].total)
    best: list[tuple[Finished, Memory]] = []
    for file, need in known:
        if not best or _loss(file) < _loss(best[-1][0]):
            best.append((file, need))
    return best


def _loss(file: Finished) -> float:
    return file.quality["kld_mean"] if file.quality else -file.bpw


def _advice(ladder: Ladder) -> Iterator[str]:
    found = advice(ladder)
    if not found:
        return
    yield "## Which file to take\n"
    rows = [
        [readable_size(need.total), _link(file.file), _kld(file)]
        for file, need in found
    ]  # fmt: skip
    yield from _lines(["free memory, at least", "take", "KLD mean"], rows)
    context = found[0][1].context
    windows = " (windows of its attention, if it has any, are not counted)"
    yield (
        f"Memory: the weights and what attention remembers at a context of {context:,} tokens"
        f"{windows if found[0][1].is_most else ''}; what llama.cpp computes with comes on top.\n"
    )


def _kld(file: Finished) -> str:
    return significant(file.quality["kld_mean"]) if file.quality else "not measured"


def table(ladder: Ladder, *, short: bool = False) -> tuple[list[str], list[list[str]]]:
    """The files' table, its columns and rows; short: for a terminal, fewer and no links."""
    judged, timed = bool(ladder.judged), any(f.speed for f in ladder.files.values())
    columns = ["file", *["type"] * (not short), "size", "bpw" if short else "bits per weight"]
    columns += ["KLD mean", *["KLD 99.9 %", "same top token"] * (not short), "PPL"] * judged
    columns += ["tok/s"] * timed
    rows = [
        [
            file.file if short else _link(file.file),
            *[file.type] * (not short),
            readable_size(file.bytes),
            f"{file.bpw:.2f}",
            *(_quality_cells(file, short=short) if judged else ()),
            *[_speed(file)] * timed,
        ]
        for file in ladder.ordered()
    ]
    return columns, rows


def _quality_cells(file: Finished, *, short: bool) -> list[str]:
    q = file.quality or {}
    rest = [] if short else [significant(q["kld_p999"]), f"{q['same_top']:.1f} %"]
    return [significant(q["kld_mean"]), *rest, f"{q['ppl']:.3f}"]


def _speed(file: Finished) -> str:
    speed = file.speed["tg"] if file.speed else None
    return "-" if speed is None else f"{speed:.1f}"


def _table(ladder: Ladder) -> Iterator[str]:
    """With a row for the original, if that was measured."""
    columns, rows = table(ladder)
    found = ladder.original
    if ladder.judged:
        size = [found["type"], readable_size(found["bytes"]), f"{found['bpw']:.2f}"]
        cells = ["the original", *size, "0", "0", "100 %", f"{found['ppl']:.3f}"]
        rows = [*rows, cells + [""] * (len(columns) - len(cells))]
    yield from _lines(columns, rows)


def _measured(ladder: Ladder) -> Iterator[str]:
    judged, timed = ladder.judged, ladder.timed
    if judged:
        yield f"![KL divergence against bits per weight]({PICTURE})\n"
        yield (
            "KLD: the KL divergence of a file's predictions from the original's, in nats, its mean "
            "and the value that one prediction in a thousand exceeds; PPL: perplexity. Both on "
            f"{judged['chunks']} chunks of {judged['context']} tokens of {judged['text']}, by "
            "llama-perplexity.\n"
        )
    if any(f.speed for f in ladder.files.values()):
        yield (
            f"tok/s: tokens decoded per second on {timed['processor']}, by llama-bench, the median "
            f"of rounds in which the files took turns ({timed['rounds']}).\n"
        )


def _how(ladder: Ladder, words: Words) -> Iterator[str]:
    files = ladder.ordered()
    found = advice(ladder)
    context = f" -c {found[0][1].context}" if found else ""
    yield "## Run one\n"
    yield _block([f"llama-cli -m {_quoted(files[len(files) // 2].file)}{context}"])
    yield "## How they were made\n"
    told = dict.fromkeys(line for file in files for line in file.told)
    yield from (f"* {line}" for line in told)
    if ladder.rotation:
        recorded = (read_rotation(open_model(ladder.folder / f.file)) for f in files)
        rotation = next(r for r in recorded if r.mode == ladder.rotation)
        yield f"* rotation {in_words(rotation)}"
        yield f"* why that rotation: {ladder.why}"
    if ladder.imatrix:
        name = ladder.imatrix["file"]
        yield f"* {_link(name)}: the importance matrix of that text, as llama-quantize reads it"
    yield f"* `sha256sum -c {SUMS}` checks what was downloaded\n"
    yield _block([words.command])
    yield "The same files one by one:\n"
    source = _quoted(words.source)
    yield _block([f"tqgguf quantize {source} -o {_quoted(f.file)} {f.options}" for f in files])


def _lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table, its first two columns to the left."""
    rule = ["---", "---", *["---:"] * (len(columns) - 2)]
    yield "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, rule, *rows)) + "\n"


def _block(lines: Sequence[str]) -> str:
    return "\n".join(["```", *lines, "```\n"])


def _link(name: str) -> str:
    shown = name.replace("|", "\\|").replace("[", "\\[").replace("]", "\\]")
    return f"[{shown}]({quote(name)})"


def _quoted(name: str) -> str:
    return shlex.quote(name)


def significant(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"
