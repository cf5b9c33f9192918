"""GGUF tensor types, one module each. To add one, add one module: the package is scanned."""

from importlib import import_module
from pkgutil import iter_modules

from tqgguf.errors import PlanError
from tqgguf.formats._float import FloatFormat
from tqgguf.formats._format import Format
from tqgguf.formats._lattice import LatticeFormat
from tqgguf.formats._matrix import round_matrix
from tqgguf.formats._scalar import ScalarFormat
from tqgguf.formats._tensor import dequantize_rows, quantize_rows
from tqgguf.kernels.dtypes import F32, U8
from tqgguf.kernels.feedback import Moments, at_once
from tqgguf.kernels.protocols import Runner

__all__ = [
    "FLOATS",
    "FORMATS",
    "FloatFormat",
    "Format",
    "LatticeFormat",
    "ScalarFormat",
    "dequantize",
    "find_format",
    "is_float",
    "quantize",
    "round_rows",
]

FORMATS: dict[str, Format] = {}
for _name in sorted(m.name for m in iter_modules(__path__) if not m.name.startswith("_")):
    _format: Format = import_module(f"{__name__}.{_name}").FORMAT
    FORMATS[_format.name] = _format

_floats = [fmt for fmt in FORMATS.values() if isinstance(fmt, FloatFormat)]
FLOATS = {fmt.name: fmt for fmt in sorted(_floats, key=lambda fmt: -fmt.significand)}


def is_float(type: str) -> bool:
    """Whether a type holds exact source weights; a source may be F64, which nothing writes."""
    return type in FLOATS or type == "F64"


def find_format(name: str) -> Format:
    """The format of this name, in any case; PlanError with the choices if there is none."""
    if name.upper() not in FORMATS:
        raise PlanError(f"there is no tensor type {name!r}; choose from {', '.join(FORMATS)}")
    return FORMATS[name.upper()]


def quantize(
    x: F32,
    name: str,
    importance: F32 | None = None,
    *,
    quick: bool = False,
    threads: int | None = None,
) -> U8:
    """Encode rows in a GGUF type: (n_rows, n_in) float32 -> (n_rows, n_bytes) uint8.

    importance: (n_in,) >= 0 weighs the squared error of each column; None is plain least squares.
    quick: without importance, try one or two candidates where that is much faster.
    threads: None for one per processor; the bytes do not depend on it. Raises ShapeError for rows
    that are no whole number of blocks, WeightError for NaN, Inf and weights beyond the type.
    """
    return quantize_rows(find_format(name), x, importance, quick=quick, threads=threads)


def dequantize(data: U8, name: str, n_in: int) -> F32:
    """Decode rows of a GGUF type: (n_rows, n_bytes) uint8 -> (n_rows, n_in) float32."""
    return dequantize_rows(find_format(name), data, n_in)


def round_rows(
    name: str, rows: F32, moments: Moments, *, sweeps: int, run: Runner = at_once
) -> tuple[U8, F32]:
    """Round rows with error feedback, in any library's arrays: see `tqgguf.kernels.feedback`.

    rows: (n_rows, n_in) float32 -> their bytes, (n_rows, n_bytes) uint8 of NumPy, and what these
    decode to, like rows.
    """
    return round_matrix(find_format(name), rows, moments, sweeps=sweeps, run=run)
