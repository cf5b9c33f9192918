"""The table of architectures as Markdown, for docs/architectures.md."""

from collections.abc import Iterable

from tqgguf.rotation.architectures import STREAMS
from tqgguf.rotation.stream import Stream

GRAPHS = "src/models"  # in llama.cpp's sources


def summary() -> str:
    """What can be rotated in each architecture, one line each, and why not where it cannot."""
    rows = ((_name(row), _stream(row), _heads(row), _remark(row)) for row in STREAMS.values())
    return _table(("architecture", "stream (R1)", "value heads (R2)", "remarks"), rows)


def details() -> str:
    """Who reads and writes the stream in each architecture, and the graph it was read from."""
    rows = (
        (
            _name(row),
            "; ".join(f"{_norm(norm)} > {', '.join(r)}" for norm, r in row.norms.items()),
            ", ".join(row.writers),
            ", ".join(row.embeddings) + (f" > {row.embedding_norm}" if row.embedding_norm else ""),
            f"{_norm(row.head_norm)} > output",
            ", ".join(row.untouched) or "-",
            f"{GRAPHS}/{row.graph or row.name}.cpp",
        )
        for row in STREAMS.values()
    )
    head = ("architecture", "norm > readers", "writers", "embeddings", "head", "beside the stream")
    return _table((*head, "graph"), rows)


def _name(row: Stream) -> str:
    return f"`{row.name}`"


def _norm(name: str) -> str:
    return name or "(no gain)"


def _stream(row: Stream) -> str:
    if row.refusal:
        return "no"
    return "signed Hadamard" if row.norm == "rms" else "regular Hadamard, keeps the mean"


def _heads(row: Stream) -> str:
    return "yes" if row.values else "no"


def _remark(row: Stream) -> str:
    narrow = f"not padded: {row.no_padding}" if row.no_padding else ""
    return "; ".join(filter(None, (row.refusal, row.why_no_values, row.note, narrow)))


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
