"""Codes in 32-bit words with a zero and a scale for each group of inputs: GPTQ and AWQ."""

from typing import Any

from numpy.typing import NDArray

from tqgguf.errors import UnsupportedModelError
from tqgguf.kernels.dtypes import F32
from tqgguf.models.huggingface.quantized.parts import Parts, groups_of, unpacked_words
from tqgguf.models.huggingface.stored import RowReader, Stored

_AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]  # where a word of AWQ keeps its first, second ... column


def gptq_or_awq(parts: Parts) -> tuple[tuple[int, ...], RowReader]:
    """Codes in 32-bit words along the inputs (GPTQ) or the outputs (AWQ): (q - zero) * scale."""
    codes, zeros, scales = (parts.matrix(end) for end in (".qweight", ".qzeros", ".scales"))
    n_groups, n_out = scales.shape
    bits = 32 * zeros.shape[1] // n_out if n_out else 0
    if bits not in (2, 4, 8) or zeros.shape != (n_groups, n_out * bits // 32):
        raise UnsupportedModelError(
            f"{parts.name}: GPTQ or AWQ codes with zeros of shape {zeros.shape} and scales of "
            f"shape {scales.shape}; expected 2, 4 or 8 bits"
        )
    if codes.shape[1] == n_out:
        return _gptq(parts, bits)
    if bits == 4 and codes.shape[1] * 8 == n_out:
        return _awq(parts)
    raise parts.wrong(f"codes of shape {codes.shape} do not fit scales of shape {scales.shape}")


def _gptq(parts: Parts, bits: int) -> tuple[tuple[int, ...], RowReader]:
    """GPTQ: (n_in * bits / 32, n_out) words; its first format stores zeros less one."""
    form = parts.settings.get("checkpoint_format") or "gptq"
    if form not in ("gptq", "gptq_v2"):
        raise UnsupportedModelError(
            f"{parts.name}: GPTQ weights in the layout {str(form)[:20]!r}; expected gptq or gptq_v2"
        )
    codes, zeros, scales = (parts.tensors[end] for end in (".qweight", ".qzeros", ".scales"))
    n_in, n_out = codes.shape[0] * 32 // bits, codes.shape[1]
    groups = groups_of(parts, n_in, scales.shape[0], ".g_idx")
    offset, per_word = int(form == "gptq"), 32 // bits

    def rows(start: int, stop: int) -> F32:
        q = unpacked_words(codes.integers((slice(None), slice(start, stop))).T, bits)
        first = start // per_word
        words = zeros.integers((slice(None), slice(first, -(-stop // per_word))))
        zero = unpacked_words(words, bits)[:, start - first * per_word :][:, : stop - start]
        zero = (zero + offset) & ((1 << bits) - 1)
        scale = scales.values((slice(None), slice(start, stop)))
        weights: F32 = (q - zero.T[:, groups]) * scale.T[:, groups]
        return weights

    return (n_out, n_in), rows


def _awq(parts: Parts) -> tuple[tuple[int, ...], RowReader]:
    """AWQ, 4 bits: (n_in, n_out / 8) words, whose columns are interleaved."""
    version = str(parts.settings.get("version") or "gemm").lower()
    if version != "gemm":
        raise UnsupportedModelError(
            f"{parts.name}: AWQ weights in the layout {version[:20]!r}; expected gemm"
        )
    codes, zeros, scales = (parts.tensors[end] for end in (".qweight", ".qzeros", ".scales"))
    n_in, n_out = codes.shape[0], scales.shape[1]
    groups = groups_of(parts, n_in, scales.shape[0], "")

    def columns(stored: Stored, start: int, stop: int) -> NDArray[Any]:
        first = start // 8
        words = stored.integers((slice(None), slice(first, -(-stop // 8))))
        nibbles = unpacked_words(words, 4).reshape(*words.shape, 8)[:, :, _AWQ_ORDER]
        return nibbles.reshape(len(words), 8 * words.shape[1])[:, start - 8 * first :][
            :, : stop - start
        ]

    def rows(start: int, stop: int) -> F32:
        zero = columns(zeros, start, stop).T[:, groups]
        scale = scales.values((slice(None), slice(start, stop))).T[:, groups]
        weights: F32 = (columns(codes, start, stop).T - zero) * scale
        return weights

    return (n_out, n_in), rows
