"""Arrays of other libraries: a kernel computes with the array-API namespace of its input.

NumPy is one of these namespaces, so there is one implementation. Where NumPy does something faster
than the standard has words for, the choice is made here and nowhere else.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqgguf.kernels.dtypes import F32


def namespace(x: Any) -> Any:
    """The functions that go with an array: the array API's, https://data-apis.org/array-api."""
    if isinstance(x, np.ndarray | np.generic):
        return np
    from array_api_compat import array_namespace

    return array_namespace(x)


def is_numpy(x: Any) -> bool:
    """Whether an array is in the memory of this process, where a call costs next to nothing."""
    return isinstance(x, np.ndarray | np.generic)


def like(array: Any, x: Any) -> Any:
    """An array with x's dtype, in x's library and where x is."""
    array = moved(array, x)
    return array if array.dtype == x.dtype else namespace(x).astype(array, x.dtype)


def moved(array: Any, x: Any) -> Any:
    """The same without a change of dtype."""
    if is_numpy(x) or not is_numpy(array):
        return array
    return namespace(x).asarray(np.require(array, requirements="W"), device=x.device)


def to_numpy(x: Any) -> NDArray[Any]:
    """The same values in the memory of this process."""
    fetch = getattr(x, "get", None) or getattr(x, "cpu", None)  # CuPy's, PyTorch's
    return np.asarray(fetch() if fetch else x)


def in_place(function: Any) -> Any:
    """The function with a keyword out, the array that its result goes into.

    That of NumPy, CuPy or PyTorch itself where it has one, so that no array stands in between.
    """
    is_torch = "torch" in (getattr(function, "__module__", None) or "")
    return function if is_torch or hasattr(function, "nin") else partial(_put, function)


def constant(value: float, x: Any) -> Any:
    """A number beside arrays such as x, as an argument of a function of both.

    NumPy takes numbers as they are; PyTorch would fetch them from this process's memory every time.
    """
    if is_numpy(x):
        return value
    return namespace(x).full((), value, dtype=x.dtype, device=x.device)


def empty(shape: tuple[int, ...], x: Any) -> Any:
    """An array of x's dtype, in x's library and where x is, that is to be written."""
    return namespace(x).empty(shape, dtype=x.dtype, device=x.device)


def replace_where(x: Any, mask: Any, values: Any) -> None:
    """Put values into x where the mask is set."""
    if is_numpy(x):
        np.copyto(x, values, where=mask)
    else:
        x[...] = namespace(x).where(mask, values, x)


def clip(x: Any, low: float, high: float) -> Any:
    """The values within low and high, which the others are replaced with."""
    if is_numpy(x):
        return np.clip(x, low, high)
    xp = namespace(x)
    return xp.minimum(xp.maximum(x, constant(low, x)), constant(high, x))


def _put(function: Any, *inputs: Any, out: Any) -> None:
    out[...] = function(*inputs)


def small_product(x: Any) -> Any:
    """The product (m, k), (k, n) -> out (m, n) of arrays such as x that costs least to call."""
    return np.dot if is_numpy(x) else in_place(namespace(x).matmul)


def parts(x: Any, size: int) -> list[Any]:
    """Views of so many rows each: (n * size, m) -> n of (size, m)."""
    if is_numpy(x):
        return list(x.reshape(-1, size, x.shape[1]))
    return [x[at : at + size, :] for at in range(0, x.shape[0], size)]


def joined(parts: Sequence[F32]) -> F32:
    """Rows one below the other; a single part is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def dot(a: Any, b: Any, out: Any = None) -> Any:
    """Sum of a * b over the last axis but one: two (..., size, n) -> (..., n), put into out too."""
    if is_numpy(a):
        return np.einsum("...in,...in->...n", a, b, out=out)
    sums = namespace(a).sum(a * b, axis=-2)
    if out is not None:
        out[...] = sums
    return sums


def inner(a: Any, b: Any) -> Any:
    """Sum of a * b over the last axis: two (..., n) -> (...)."""
    if is_numpy(a):
        return np.einsum("...i,...i->...", a, b)
    return namespace(a).sum(a * b, axis=-1)


def rint(x: Any) -> Any:
    """The nearest whole numbers, ties to even."""
    return np.rint(x) if is_numpy(x) else namespace(x).round(x)


def as_half(x: Any) -> Any:
    """Float32 values rounded as float16 does; the standard knows no float16."""
    xp = namespace(x)
    if hasattr(xp, "float16"):
        return xp.astype(xp.astype(x, xp.float16), x.dtype)
    return moved(to_numpy(x).astype(np.float16).astype(np.float32), x)


def add_to_diagonal(x: Any, value: float) -> None:
    """Add to the diagonal of (n, n), which lies in one piece, in place."""
    flat = namespace(x).reshape(x, (-1,), copy=False)
    flat[:: x.shape[0] + 1] += value
