"""What conversion does to single tensors: rows in another order, stacks, shifts; all of it lazy."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from tqgguf.errors import FileFormatError
from tqgguf.kernels.dtypes import F32, I64
from tqgguf.models.model import Tensor

RAW_FLOATS = ("F32", "F16", "BF16")  # whose bytes are what rows are


def stacked(experts: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape as one with a leading axis: (n_expert, n_out, n_in)."""
    first = experts[0]
    different = [t for t in experts if t.shape != first.shape or t.type != first.type]
    if different:
        raise FileFormatError(
            f"{different[0].name}: {different[0].type} of shape {different[0].shape}, but "
            f"{first.name} is {first.type} of shape {first.shape}; experts must be alike"
        )
    shape = (len(experts), *first.shape)
    rows = partial(_rows_of_stack, [t.rows for t in experts], first.n_rows)
    if first.type in RAW_FLOATS or any(t.raw is None for t in experts):
        return Tensor(first.name, shape, first.type, rows)
    scales = [t.scales for t in experts if t.scales is not None]
    raw = partial(_rows_of_stack, [t.stored for t in experts], first.n_rows)
    joined = np.concatenate(scales) if scales else None
    return Tensor(first.name, shape, first.type, rows, raw, scales=joined)


def _rows_of_stack(
    experts: Sequence[Callable[[int, int], Any]], per_expert: int, start: int, stop: int
) -> Any:
    """Rows of a stack: experts read those of each, per_expert of them."""
    parts = [experts[0](0, 0)]
    for i in range(start // per_expert, -(-stop // per_expert)):
        first, last = start - i * per_expert, stop - i * per_expert
        parts.append(experts[i](max(first, 0), min(last, per_expert)))
    return np.concatenate(parts) if len(parts) > 2 else parts[-1]


def interleaved(tensor: Tensor, n_head: int) -> Tensor:
    """Rows of q or k put from Hugging Face's rotary order into ggml's.

    Hugging Face rotates row i of a head with row i + head_dim / 2, ggml's llama graph rows 2i and
    2i + 1. tensor: (n_head * head_dim, n_in), or a bias (n_head * head_dim,).
    """
    n = tensor.shape[0]
    if n % (2 * n_head):
        raise FileFormatError(f"{tensor.name}: {n} rows are not {n_head} heads of even width")
    order = np.arange(n).reshape(n_head, 2, n // n_head // 2).swapaxes(1, 2).reshape(-1)
    return reordered(tensor, order)


def reordered(tensor: Tensor, order: I64) -> Tensor:
    """The rows of a matrix, or the weights of a vector, in another order."""
    if len(tensor.shape) == 1:
        return tensor.derived(partial(_columns_in_order, tensor, order))
    rows = partial(_rows_in_order, tensor.rows, order)
    if tensor.type in RAW_FLOATS or tensor.raw is None:
        return tensor.derived(rows)
    return replace(tensor, rows=rows, raw=partial(_rows_in_order, tensor.raw, order), tile=None)


def chosen(tensor: Tensor, order: I64, name: str) -> Tensor:
    """Some rows of a matrix, in this order, as a matrix of its own."""
    rows = partial(_rows_in_order, tensor.rows, order)
    shape = (len(order), tensor.n_in)
    return replace(tensor, name=name, shape=shape, rows=rows, raw=None, tile=None)


def in_halves(tensor: Tensor, part: str, names: tuple[str, str]) -> list[Tensor]:
    """The first and the second half of a matrix's rows, each with a name of its own."""
    rows, half = np.arange(tensor.shape[0]), tensor.shape[0] // 2
    orders = rows[:half], rows[half:]
    named = [tensor.name.replace(part, name) for name in names]
    return [chosen(tensor, *each) for each in zip(orders, named, strict=True)]


def with_columns(tensor: Tensor, order: I64) -> Tensor:
    """The columns of a matrix in another order."""
    return tensor.derived(partial(_columns_in_order, tensor, order))


def _rows_in_order(read: Callable[[int, int], Any], order: I64, start: int, stop: int) -> Any:
    """Rows order[start:stop]: in one piece where they lie close together, else run by run."""
    wanted = order[start:stop]
    if not wanted.size:
        return read(0, 0)
    first, span = int(wanted.min()), int(np.ptp(wanted)) + 1
    if span <= 4 * wanted.size:
        return read(first, first + span)[wanted - first]
    runs = np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1)
    return np.concatenate([read(int(run[0]), int(run[-1]) + 1) for run in runs])


def _columns_in_order(tensor: Tensor, order: I64, start: int, stop: int) -> F32:
    return tensor.rows(start, stop)[:, order]


def shifted(tensor: Tensor, by: float) -> Tensor:
    """All weights plus a constant: Gemma's norms multiply by 1 + weight."""
    return mapped(tensor, lambda weights: weights + np.float32(by))


def mapped(tensor: Tensor, function: Callable[[F32], F32]) -> Tensor:
    """Every weight through a function, as float32."""
    return tensor.derived(lambda start, stop: function(tensor.rows(start, stop)), type="F32")


def decompressed(tensor: Tensor, n_head: int, n_keys: int) -> list[Tensor]:
    """DeepSeek's matrix from the latent to keys and values as the two that ggml's graph has.

    tensor: (n_head * (n_keys + n_values), n_latent). That of the keys, (n_head, n_latent, n_keys),
    is turned, for it is applied to the queries; that of the values, (n_head, n_values, n_latent),
    is not.
    """
    width = tensor.shape[0] // n_head
    if tensor.shape[0] != n_head * width or width <= n_keys:
        raise FileFormatError(f"{tensor.name}: {tensor.shape[0]} rows are not {n_head} heads")
    keys = [_turned_head(tensor, head * width, n_keys) for head in range(n_head)]
    values = [_head(tensor, head * width + n_keys, width - n_keys) for head in range(n_head)]
    names = [tensor.name.replace("kv_b_proj", f"{part}_b_proj") for part in "kv"]
    stacks = [stacked(keys), stacked(values)]
    return [replace(t, name=name) for t, name in zip(stacks, names, strict=True)]


def _head(tensor: Tensor, first: int, count: int) -> Tensor:
    rows = partial(_rows_from, tensor, first)
    return replace(tensor, shape=(count, tensor.n_in), rows=rows, raw=None, tile=None)


def _rows_from(tensor: Tensor, first: int, start: int, stop: int) -> F32:
    return tensor.rows(first + start, first + stop)


def _turned_head(tensor: Tensor, first: int, count: int) -> Tensor:
    def rows(start: int, stop: int) -> F32:
        return tensor.rows(first, first + count).T[start:stop]

    return replace(tensor, shape=(tensor.n_in, count), rows=rows, raw=None, tile=None)
