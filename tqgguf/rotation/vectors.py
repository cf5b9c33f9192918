"""The vectors that the steps of a rotation name: read or derived, and recorded in the file.

A name is that of a tensor of the unrotated model, or tells what the vector is derived from:
`blk.0.ffn_balance` stands for `ffn_up` and `ffn_down`, `blk.0.norm_balance+attn_q+attn_k+attn_v`
for what reads the norm, `MATRIX*VECTOR` for their product, `token_embd_norm` for a norm behind the
embedding.
"""

import numpy as np

from tqgguf.errors import FileFormatError
from tqgguf.kernels.dtypes import F32
from tqgguf.models.metadata import Value, encode
from tqgguf.models.model import Model, Tensor
from tqgguf.rotation.balance import chunks, ffn_balance, norm_balance
from tqgguf.rotation.embedding_norm import NORM, embedding_norm

BALANCE = "ffn_balance"  # stands in a name in the place of ffn_up and ffn_down
NORM_BALANCE = "norm_balance"  # and what reads the norm: blk.0.norm_balance+attn_q+attn_k+attn_v
_TIMES = "*"
_VECTOR = "tqgguf.vector."
_EXPONENTS = "tqgguf.exponents."


def vector_of(model: Model, name: str) -> F32:
    """The vector of this name: a tensor of the unrotated model, or derived from two of them."""
    if name in model.tensors:
        return model.tensors[name].read()
    if name == NORM:
        return embedding_norm(model).packed()
    if _TIMES in name:
        matrix, vector = (model.tensors[n] for n in name.split(_TIMES))
        return product(matrix, vector.read())
    if NORM_BALANCE in name:
        prefix, *readers = name.replace(NORM_BALANCE, "").split("+")
        return norm_balance([model.tensors[f"{prefix}{reader}.weight"] for reader in readers])
    up, down = (f"{name.replace(BALANCE, matrix)}.weight" for matrix in ("ffn_up", "ffn_down"))
    return ffn_balance(model.tensors[up], model.tensors[down])


def size_of(model: Model, name: str) -> int:
    """How many values the vector of a tensor, a product or a norm has; -1 where it has none."""
    if name in model.tensors:
        return model.tensors[name].size
    if _TIMES in name:
        matrix, vector = (model.tensors.get(n) for n in name.split(_TIMES))
        return matrix.n_rows if matrix and vector and matrix.n_in == vector.size else -1
    parts = [model.tensors.get(f"{name}.{part}") for part in ("weight", "bias")]
    sizes = {t.size if t else -1 for t in parts}
    return sizes.pop() if len(sizes) == 1 else -1


def product_name(matrix: str, vector: str) -> str:
    """The name of a matrix times a vector."""
    return f"{matrix}{_TIMES}{vector}"


def is_balance(name: str) -> bool:
    """Whether a vector, or the step that names it, balances channels."""
    return BALANCE in name or NORM_BALANCE in name


def product(matrix: Tensor, vector: F32) -> F32:
    """The matrix times the vector, summed in float64: (n_out,) float32."""
    parts = [np.einsum("ij,j->i", x, vector.astype(np.float64)) for _, x in chunks(matrix)]
    return np.concatenate(parts).astype(np.float32)


def encode_vector(name: str, vector: F32) -> tuple[str, Value]:
    """The metadata key and value; powers of two as their exponents, a quarter of the size."""
    if is_balance(name):
        return _EXPONENTS + name, encode(np.log2(vector).astype(np.int8))
    return _VECTOR + name, encode(vector)


def recorded_vectors(model: Model) -> dict[str, F32]:
    """The vectors in a model's metadata, the inverse of `encode_vector`.

    Raises FileFormatError for what is no array of finite numbers.
    """
    return {
        key.removeprefix(prefix): decode(_numbers(model, key))
        for prefix, decode in ((_VECTOR, np.asarray), (_EXPONENTS, np.exp2))
        for key in model.metadata
        if key.startswith(prefix)
    }


def _numbers(model: Model, key: str) -> F32:
    try:
        vector = np.asarray(model.get(key), np.float32)
    except (ValueError, TypeError, OverflowError):
        vector = np.empty((0, 0), np.float32)
    if vector.ndim != 1 or not np.isfinite(vector).all():
        raise FileFormatError(f"{model.path}: {key} is no array of numbers")
    return vector
