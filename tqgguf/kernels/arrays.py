"""Arrays of other libraries: a kernel computes with the array-API namespace of its input.

NumPy is one of these namespaces, so there is one implementation. Where NumPy does something faster
than the standard has words for, the choice is made here and nowhere else.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


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
    return namespace(x).asarray(array, device=x.device)


def to_numpy(x: Any) -> NDArray[Any]:
    """The same values in the memory of this process."""
    fetch = getattr(x, "get", None)  # CuPy's
    return np.asarray(x if fetch is None else fetch())


def write(function: Any, *inputs: Any, out: Any) -> None:
    """Put function(*inputs) into out; without an array in between where the library can."""
    if hasattr(function, "nin"):  # a ufunc, of NumPy or CuPy
        function(*inputs, out=out)
    else:
        out[...] = function(*inputs)


def dot(a: Any, b: Any) -> Any:
    """Sum of a * b over axis 0: two (size, n) -> (n,)."""
    if is_numpy(a):
        return np.einsum("in,in->n", a, b)
    return namespace(a).sum(a * b, axis=0)


def inner(a: Any, b: Any) -> Any:
    """Sum of a * b over the last axis: two (..., n) -> (...)."""
    if is_numpy(a):
        return np.einsum("...i,...i->...", a, b)
    return namespace(a).sum(a * b, axis=-1)


def rint(x: Any) -> Any:
    """The nearest whole numbers, ties to even."""
    return np.rint(x) if is_numpy(x) else namespace(x).round(x)


def look_up(table: Any, index: Any) -> Any:
    """table[index], of a table with one axis; an index beyond its ends means the nearest end."""
    if is_numpy(table):
        return np.take(table, index, mode="clip")
    xp = namespace(table)
    flat = xp.reshape(index, (-1,))
    return xp.reshape(xp.take(table, xp.clip(flat, 0, table.shape[0] - 1)), index.shape)
