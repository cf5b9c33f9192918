"""Rotate a stream that begins with LayerNorm(embedding) * g + c, as BLOOM's does.

The gain g acts on the stream itself, so no fold into a reader can take it away, and a rotation does
not commute with it. But the embedding is a table: what the norm makes of a row can be chosen. Let
y be that row's g * n + c less its mean, which every later LayerNorm removes anyway. With a uniform
gain G above every row's deviation of y, and no bias, the norm gives any z = y/G of variance v < 1
exactly:

    z = x / sqrt(var(x) + eps)    for    x = z sqrt(eps / (1 - v))

so x is stored, and y may be rotated by any Q that keeps the mean.
"""

import math
from dataclasses import dataclass

import numpy as np

from tqgguf.errors import UnsupportedModelError
from tqgguf.kernels.dtypes import F32, F64
from tqgguf.models.model import Model, Tensor
from tqgguf.rotation.balance import chunks

HEADROOM = 1.05  # G over the largest deviation: keeps 1 - v well away from 0
NORM = "token_embd_norm"


@dataclass(frozen=True)
class EmbeddingNorm:
    """The norm behind an embedding of n_vocab rows of n_embd: all that `fold` and `unfold` need.

    gain, bias: (n_embd,); mean and scale (n_vocab,): a row's mean and 1/sqrt(variance + eps).
    """

    eps: float
    level: float  # G
    gain: F64
    bias: F64
    mean: F64
    scale: F64

    def fold(self, rows: F32, first: int) -> F32:
        """Rows first, first + 1 ... of the embedding: (n, n_embd) float32 -> what is stored."""
        at = slice(first, first + len(rows))
        n = (rows - self.mean[at, None]) * self.scale[at, None]
        z = _centred(n * self.gain + self.bias) / self.level
        variance = np.square(z).mean(axis=-1, keepdims=True)
        stored: F32 = (z * np.sqrt(self.eps / (1 - variance))).astype(np.float32)
        return stored

    def unfold(self, rows: F32, first: int) -> F32:
        """The inverse of `fold`: (n, n_embd) float32 -> the original rows."""
        at = slice(first, first + len(rows))
        x = _centred(rows.astype(np.float64))
        y = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + self.eps) * self.level
        away = (y - self.bias) / self.gain  # n, but for the mean of y that was dropped
        n = away - away.mean(axis=-1, keepdims=True) / (1 / self.gain).mean() / self.gain
        rows_again: F32 = (n / self.scale[at, None] + self.mean[at, None]).astype(np.float32)
        return rows_again

    def packed(self) -> F32:
        """One vector for the metadata."""
        numbers = (self.eps, self.level, len(self.gain))
        parts = (numbers, self.gain, self.bias, self.mean, self.scale)
        return np.concatenate(parts).astype(np.float32)


def packed_size(n_vocab: int, n_embd: int) -> int:
    """How many values `packed` has."""
    return 3 + 2 * n_embd + 2 * n_vocab


def unpacked(vector: F32) -> EmbeddingNorm:
    """The inverse of `packed`."""
    eps, level, n_embd = float(vector[0]), float(vector[1]), int(vector[2])
    values = vector[3:].astype(np.float64)
    gain, bias, rows = np.split(values, [n_embd, 2 * n_embd])
    mean, scale = np.split(rows, 2)
    return EmbeddingNorm(eps, level, gain, bias, mean, scale)


def embedding_norm(model: Model) -> EmbeddingNorm:
    """Measure the embedding of a model.

    Raises UnsupportedModelError for a gain of zero, which cannot be undone.
    """
    embedding = model.tensors["token_embd.weight"]
    gain, bias = (model.tensors[f"{NORM}.{part}"].read() for part in ("weight", "bias"))
    if not gain.all():
        raise UnsupportedModelError(
            f"{model.path}: {NORM}.weight holds a gain of zero, which cannot be folded; "
            "use --rotate none"
        )
    eps = float(np.float32(model.get("{arch}.attention.layer_norm_epsilon", 1e-5)))
    mean, scale = _row_statistics(embedding, eps)
    norm = EmbeddingNorm(eps, 1.0, gain.astype(np.float64), bias.astype(np.float64), mean, scale)
    return EmbeddingNorm(eps, _level(embedding, norm), norm.gain, norm.bias, mean, scale)


def _row_statistics(embedding: Tensor, eps: float) -> tuple[F64, F64]:
    mean, variance = np.empty(embedding.n_rows), np.empty(embedding.n_rows)
    for first, x in chunks(embedding):
        at = slice(first, first + len(x))
        mean[at], variance[at] = x.mean(axis=-1), x.var(axis=-1)
    stored = (v.astype(np.float32).astype(np.float64) for v in (mean, 1 / np.sqrt(variance + eps)))
    return next(stored), next(stored)


def _level(embedding: Tensor, norm: EmbeddingNorm) -> float:
    """G: a little above the largest deviation of any row behind the norm."""
    largest = 0.0
    for first, x in chunks(embedding):
        at = slice(first, first + len(x))
        n = (x - norm.mean[at, None]) * norm.scale[at, None]
        y = _centred(n * norm.gain + norm.bias)
        largest = max(largest, float(np.square(y).mean(axis=-1).max()))
    return float(np.float32(HEADROOM * math.sqrt(largest)))


def _centred(x: F64) -> F64:
    centred: F64 = x - x.mean(axis=-1, keepdims=True)
    return centred
