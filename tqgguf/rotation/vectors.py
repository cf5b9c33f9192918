"""The vectors that the steps of a rotation name: read or derived, and recorded in the file.

A name is that of a tensor of the unrotated model, or tells what the vector is derived from:
`blk.0.ffn_balance` stands for `ffn_up` and `ffn_down`, `blk.0.norm_balance+attn_q+attn_k+attn_v`
for what reads the norm, `MATRIX*VECTOR` for their product, `token_embd_norm` for a norm behind the
embedding.
"""

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from tqgguf.errors import FileFormatError, PlanError
from tqgguf.kernels.dtypes import F32
from tqgguf.models.metadata import Value, encode
from tqgguf.models.model import Model, Tensor
from tqgguf.rotation.balance import STEPS, chunks, ffn_balance, norm_balance, power
from tqgguf.rotation.embedding_norm import NORM, embedding_norm, packed_size

BALANCE = "ffn_balance"  # stands in a name in the place of ffn_up and ffn_down
NORM_BALANCE = "norm_balance"  # and what reads the norm: blk.0.norm_balance+attn_q+attn_k+attn_v
_TIMES = "*"
_VECTOR = "tqgguf.vector."
_EXPONENTS = "tqgguf.exponents."  # of two
_FINE_EXPONENTS = "tqgguf.fine_exponents."  # of the STEPS-th root of two
Energies = Callable[[str], F32 | None]
"""A matrix's name -> (n_mat, n_in) float32, n_mat being its stacked experts or 1; or None."""


def vector_of(model: Model, energies: Energies | None, name: str) -> F32:
    """The vector of this name: a tensor of the unrotated model, or derived from several.

    energies: of the inputs, if known, for vectors that balance channels.
    """
    if name in model.tensors:
        return model.tensors[name].read()
    if name == NORM:
        return embedding_norm(model).packed()
    if _TIMES in name:
        matrix, vector = (model.tensors[n] for n in name.split(_TIMES))
        return product(matrix, vector.read())
    if NORM_BALANCE in name:
        prefix, *readers = name.replace(NORM_BALANCE, "").split("+")
        matrices = [model.tensors[f"{prefix}{reader}.weight"] for reader in readers]
        return norm_balance(matrices, _inputs(matrices, energies))
    names = (f"{name.replace(BALANCE, matrix)}.weight" for matrix in ("ffn_up", "ffn_down"))
    up, down = (model.tensors[n] for n in names)
    return ffn_balance(up, down, _inputs([down], energies))


def _inputs(readers: Sequence[Tensor], energies: Energies | None) -> F32 | None:
    """Energies of what these matrices read, all the same: (n_mat, n_in); None if unknown.

    Stacked experts see a part of it each, so they are asked last.
    """
    for reader in sorted(readers, key=lambda reader: len(reader.shape)):
        found = energies(reader.name) if energies else None
        if found is not None:
            expected = (prod(reader.shape[:-2]), reader.n_in)
            if found.shape != expected:
                raise PlanError(
                    f"{reader.name}: {found.size} energies of inputs, but the tensor needs "
                    f"{prod(expected)}; they belong to another model"
                )
            return found
    return None


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


def recorded_size(model: Model, name: str) -> int:
    """How many values a file records for the vector of a name that `vector_of` knows."""
    if name == NORM:
        table = model.tensors["token_embd.weight"]
        return packed_size(table.n_rows, table.n_in)
    if NORM_BALANCE in name:
        prefix, reader, *_ = name.replace(NORM_BALANCE, "").split("+")
        return model.tensors[f"{prefix}{reader}.weight"].n_in
    if BALANCE in name:
        return model.tensors[f"{name.replace(BALANCE, 'ffn_up')}.weight"].n_rows
    return size_of(model, name)


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
    """The metadata key and value; what balances as exponents, a quarter of the size."""
    if not is_balance(name):
        return _VECTOR + name, encode(vector)
    steps = np.rint(STEPS * np.log2(vector.astype(np.float64)))
    if np.any(steps % STEPS):
        return _FINE_EXPONENTS + name, encode(steps.astype(np.int8))
    return _EXPONENTS + name, encode((steps / STEPS).astype(np.int8))


def recorded_vectors(model: Model) -> dict[str, F32]:
    """The vectors in a model's metadata, the inverse of `encode_vector`.

    Raises FileFormatError for what is no array of finite numbers.
    """
    return {
        key.removeprefix(prefix): decode(_numbers(model, key))
        for prefix, decode in (
            (_VECTOR, np.asarray),
            (_EXPONENTS, np.exp2),
            (_FINE_EXPONENTS, power),
        )
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
