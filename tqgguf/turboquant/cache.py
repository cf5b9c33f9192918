"""A key-value cache whose vectors are stored compressed, as attention would use it."""

import math
from dataclasses import dataclass, field

import numpy as np

from tqgguf.errors import ShapeError
from tqgguf.kernels.dtypes import F32
from tqgguf.turboquant.quantizers import Compressed, TurboQuantMSE, TurboQuantProd


@dataclass
class KVCache:
    """The keys and values of one attention head, compressed as they arrive.

    keys: the quantizer of the keys, MSE or Prod; values: that of the values. Scores are estimated
    from the codes and the rotated query, without rotating a key back; the output is rotated back
    once, after the weighted sum.
    """

    keys: TurboQuantMSE | TurboQuantProd
    values: TurboQuantMSE
    _keys: list[Compressed] = field(default_factory=list, init=False, repr=False)
    _values: list[Compressed] = field(default_factory=list, init=False, repr=False)

    def append(self, keys: F32, values: F32) -> None:
        """Store one or n tokens: keys and values (dim,) or (n, dim) float32."""
        new_keys, new_values = self.keys.compress(keys), self.values.compress(values)
        if len(new_keys) != len(new_values):
            raise ShapeError(f"{len(new_keys)} keys and {len(new_values)} values: expected as many")
        self._keys.append(new_keys)
        self._values.append(new_values)

    def __len__(self) -> int:
        return sum(map(len, self._keys))

    @property
    def nbytes(self) -> int:
        """Bytes of everything stored per token; codebooks, rotations and sketches are shared."""
        return sum(part.nbytes for part in self._keys + self._values)

    def compression_ratio(self, bytes_per_number: int = 4) -> float:
        """How many times smaller than uncompressed numbers: 2 bytes float16, 4 bytes float32."""
        plain = len(self) * (self.keys.dim + self.values.dim) * bytes_per_number
        return plain / self.nbytes if self.nbytes else math.nan

    def attention_scores(self, queries: F32) -> F32:
        """Estimated <query, key>, unscaled: (dim,) or (m, dim) float32 -> (n,) or (m, n)."""
        if not self._keys:
            raise ShapeError("the cache is empty: append keys and values before asking for scores")
        return self.keys.inner_product(queries, _merge(self._keys))

    def attention_output(self, queries: F32, *, scale: float | None = None) -> F32:
        """softmax(scale <query, key>) values: (dim,) or (m, dim) float32 -> the same shape.

        scale: 1/sqrt(dim) unless given.
        """
        scale = 1 / math.sqrt(self.keys.dim) if scale is None else scale
        weights = softmax(self.attention_scores(queries) * np.float32(scale))
        rotated = self.values.rotated(_merge(self._values))
        return self.values.rotate.inverse(weights @ rotated)


def softmax(scores: F32) -> F32:
    """Weights along the last axis that are positive and sum to 1, (..., n) float32."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def _merge(parts: list[Compressed]) -> Compressed:
    """One block of everything, kept in place of the many small ones."""
    if len(parts) > 1:
        parts[:] = [Compressed.concatenate(parts)]
    return parts[0]
