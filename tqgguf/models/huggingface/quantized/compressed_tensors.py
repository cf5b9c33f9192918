"""Integers of compressed-tensors, packed into words or a byte each."""

import numpy as np

from tqgguf.errors import UnsupportedModelError
from tqgguf.kernels.dtypes import F32
from tqgguf.models.huggingface.quantized.parts import Parts, groups_of, scale_rows, unpacked_words
from tqgguf.models.huggingface.stored import RowReader


def packed_integers(parts: Parts) -> tuple[tuple[int, ...], RowReader]:
    """compressed-tensors: (n_out, n_words) words along the inputs, codes offset to be unsigned."""
    codes, listed = parts.matrix(".weight_packed"), parts.tensors[".weight_shape"].integers()
    if listed.shape != (2,) or listed[0] != codes.shape[0]:
        raise parts.wrong(f"weight_shape {listed.tolist()} does not fit {codes.shape} words")
    n_out, n_in = map(int, listed)
    fitting = [b for b in (2, 4, 8) if -(-n_in // (32 // b)) == codes.shape[1]]
    if not fitting:
        raise UnsupportedModelError(
            f"{parts.name}: {n_in} weights in {codes.shape[1]} words; expected 2, 4 or 8 bits"
        )
    bits = fitting[0]
    scale = scale_rows(parts, (n_out, n_in), ".weight_scale", grouped=True)
    zero = _zero(parts, (n_out, n_in), bits)

    def rows(start: int, stop: int) -> F32:
        q = unpacked_words(codes.integers(slice(start, stop)), bits)[:, :n_in]
        return (q - zero(start, stop)) * scale(start, stop)

    return (n_out, n_in), rows


def _zero(parts: Parts, shape: tuple[int, int], bits: int) -> RowReader:
    """Zero points of compressed-tensors' packed codes: the middle, or packed along the rows."""
    stored = parts.tensors.get(".weight_zero_point")
    if stored is None:
        return lambda *_: np.array([[1 << (bits - 1)]], np.float32)
    if stored.dtype == "I8":  # as older versions wrote them: signed, not packed
        plain = scale_rows(parts, shape, ".weight_zero_point", grouped=True)
        return lambda start, stop: plain(start, stop) + (1 << (bits - 1))
    per_word, groups = 32 // bits, groups_of(parts, shape[1], stored.shape[-1], ".weight_g_idx")
    if stored.shape != (-(-shape[0] // per_word), stored.shape[-1]):
        raise parts.wrong(f"zero points of shape {stored.shape} for a matrix of shape {shape}")

    def rows(start: int, stop: int) -> F32:
        first = start // per_word
        words = stored.integers(slice(first, -(-stop // per_word)))
        lines = unpacked_words(words.T, bits).T[start - first * per_word :][: stop - start]
        return lines[:, groups].astype(np.float32)

    return rows


def bytewise_integers(parts: Parts) -> tuple[tuple[int, ...], RowReader]:
    """Signed codes in bytes: (q - zero) * scale."""
    codes = parts.matrix(".weight")
    shape = (codes.shape[0], codes.shape[1])
    scale = scale_rows(parts, shape, ".weight_scale", grouped=True)
    has_zero = ".weight_zero_point" in parts.tensors
    zero = scale_rows(parts, shape, ".weight_zero_point", grouped=True) if has_zero else _no_zero

    def rows(start: int, stop: int) -> F32:
        q = codes.integers(slice(start, stop)).astype(np.float32)
        return (q - zero(start, stop)) * scale(start, stop)

    return shape, rows


def _no_zero(*_: int) -> F32:
    return np.zeros((1, 1), np.float32)
