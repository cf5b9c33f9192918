"""The file of log-probabilities that llama-perplexity --kl-divergence-base writes.

Layout, little-endian: "_logits_", int32 context, vocabulary, chunks; the tokens (chunks, context)
int32; then for every predicted position a float32 scale and minimum and one uint16 code per
vocabulary entry (padded to an even number), log p = scale * code + minimum.

The codes are up to 1.2e-4 nats off, and llama-perplexity's KL divergence inherits that at first
order: a model against itself shows a maximum near 6e-5. Where two models are nearer than that, both
must be coded and each distribution normalised again, which leaves the square of the error.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tqgguf.errors import ToolError
from tqgguf.kernels.dtypes import F64

MAGIC = b"_logits_"
FIELDS = ("context", "vocabulary", "chunks")
HEADER = np.dtype([("magic", "S8"), *((name, "<i4") for name in FIELDS)])
ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Distance:
    """KL divergence in nats over all positions; the share with the same top token in per cent."""

    kld_mean: float
    kld_p999: float
    kld_max: float
    same_top: float


def distance(base: Path, other: Path) -> Distance:
    """Compare two files that hold predictions for the same tokens, position by position."""
    p, q = open_logits(base), open_logits(other)
    words = [rows.dtype["codes"].shape[0] for rows in (p, q)]
    if words[0] != words[1]:
        raise ToolError(f"{other}: {words[1]} entries in the vocabulary, but {base} has {words[0]}")
    if len(p) != len(q):
        raise ToolError(f"{other}: {len(q)} predictions, but {base} has {len(p)}")
    parts = [_compare(p[i : i + ROWS_AT_ONCE], q[i : i + ROWS_AT_ONCE]) for i in _starts(len(p))]
    kld, same = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Distance(
        kld_mean=float(kld.mean()),
        kld_p999=float(np.quantile(kld, 0.999)),
        kld_max=float(kld.max()),
        same_top=100 * float(same.mean()),
    )


def perplexity(path: Path) -> float:
    """The perplexity of the tokens in the file, none less likely than e^-16 of the likeliest."""
    rows, tokens = open_logits(path), open_tokens(path)
    context = tokens.shape[1]
    wanted = tokens[:, context // 2 + 1 :].ravel()
    parts = [
        _log_probabilities(rows[i : i + ROWS_AT_ONCE])[np.arange(len(at)), at]
        for i in _starts(len(rows))
        if len(at := wanted[i : i + ROWS_AT_ONCE])
    ]
    return math.exp(-float(np.concatenate(parts).mean()))


def open_tokens(path: Path) -> NDArray[np.int32]:
    """The tokens the predictions are for: (chunks, context) int32."""
    context, _, chunks = _header(path)
    return np.fromfile(path, "<i4", chunks * context, offset=HEADER.itemsize).reshape(-1, context)


def open_logits(path: Path) -> NDArray[np.void]:
    """Map a file's predictions: (positions,) records with `scale` and `codes` (vocabulary,)."""
    context, vocabulary, chunks = _header(path)
    fields = [("scale", "<f4"), ("minimum", "<f4"), ("codes", "<u2", (vocabulary,))]
    record = np.dtype([*fields, ("padding", "<u2", (vocabulary % 2,))])
    positions = chunks * (context - 1 - context // 2)
    begin = HEADER.itemsize + 4 * chunks * context
    size = path.stat().st_size
    if not positions or size != begin + positions * record.itemsize:
        raise ToolError(f"{path}: {size:,} bytes do not hold {positions:,} predictions")
    return np.memmap(path, record, "r", begin, (positions,))


def _header(path: Path) -> tuple[int, int, int]:
    header = np.fromfile(path, HEADER, 1)
    if not header.size or header["magic"][0] != MAGIC:
        raise ToolError(f"{path}: does not look like llama-perplexity's log-probabilities")
    context, vocabulary, chunks = (int(header[name][0]) for name in FIELDS)
    return context, vocabulary, chunks


def _starts(count: int) -> Iterator[int]:
    yield from range(0, count, ROWS_AT_ONCE)


def _compare(p: NDArray[np.void], q: NDArray[np.void]) -> tuple[F64, NDArray[np.bool_]]:
    log_p, log_q = _log_probabilities(p), _log_probabilities(q)
    kld = np.sum(np.exp(log_p) * (log_p - log_q), axis=1)
    return kld, log_p.argmax(axis=1) == log_q.argmax(axis=1)


def _log_probabilities(rows: NDArray[np.void]) -> F64:
    logits = rows["scale"][:, None].astype(np.float64) * rows["codes"]
    logits -= logits.max(axis=1, keepdims=True)
    normalised: F64 = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return normalised
