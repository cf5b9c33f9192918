"""ggml's own quantizers, called through ctypes in the shared object of the xllamacpp wheel."""

import ctypes
from functools import cache

import gguf
import numpy as np
import xllamacpp
from numpy.typing import NDArray

from tqgguf.ggml import TYPES

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
NEEDS_IMPORTANCE = frozenset({"IQ2_XXS", "IQ2_XS", "IQ1_S"})  # without it ggml aborts the process
NO_DECODER = frozenset({"Q1_0", "Q2_0"})  # in gguf-py


@cache
def library() -> ctypes.CDLL:
    """The shared object, with the one function's signature declared."""
    lib = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,  # type
        ctypes.c_void_p,  # source, float32
        ctypes.c_void_p,  # destination
        ctypes.c_int64,  # first weight
        ctypes.c_int64,  # rows
        ctypes.c_int64,  # weights per row
        ctypes.c_void_p,  # importance, float32, or NULL
    ]
    return lib


def quantize(x: F32, name: str, importance: F32 | None = None) -> U8:
    """Encode like llama-quantize: (n_rows, n_in) float32 -> (n_rows, n_bytes) uint8.

    importance: (n_in,) float32 as from an imatrix, or None for ggml's default without one.
    """
    if importance is None and name in NEEDS_IMPORTANCE:
        raise ValueError(f"ggml needs an importance for {name}")
    x = np.ascontiguousarray(x, np.float32)
    n_rows, n_in = x.shape
    number, block, size = TYPES[name]
    out = np.zeros((n_rows, n_in // block * size), np.uint8)
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
    pointer = None if importance is None else importance.ctypes.data
    written = library().ggml_quantize_chunk(
        number, x.ctypes.data, out.ctypes.data, 0, n_rows, n_in, pointer
    )
    if written != out.nbytes:
        raise AssertionError((name, written, out.nbytes))
    return out


def dequantize(data: U8, name: str) -> F32:
    """Decode by gguf-py, the reader's view: (n_rows, n_bytes) uint8 -> (n_rows, n_in) float32.

    By ggml itself where gguf-py knows no decoder.
    """
    if name not in NO_DECODER:
        decoded: F32 = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name])
        return decoded
    data = np.ascontiguousarray(data)
    _, block, size = TYPES[name]
    out = np.empty((len(data), data.shape[1] // size * block), np.float32)
    decode = getattr(library(), f"dequantize_row_{name.lower()}")
    decode(
        ctypes.c_void_p(data.ctypes.data),
        ctypes.c_void_p(out.ctypes.data),
        ctypes.c_int64(out.size),
    )
    return out
