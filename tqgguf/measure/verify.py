"""Prove that a finished file is its original, up to the recorded rotation and rounding.

The original is rotated as the file's metadata says and compared block by block in that basis, so
that one damaged block shows in a tensor of millions. Importance gives up weights that hardly count,
and calibration moves them on purpose, so of such files this proves less; the network's own output
is then the better witness.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import lcm

import numpy as np

from tqgguf.errors import MismatchError
from tqgguf.formats import FLOATS, is_float
from tqgguf.ggml import TYPES
from tqgguf.kernels.dtypes import F32
from tqgguf.machine.threads import map_in_order
from tqgguf.models import INTEGERS, Model, Tensor
from tqgguf.output.tiles import Tile, tiles
from tqgguf.planning.matrices import needs_f32
from tqgguf.rotation import ends
from tqgguf.rotation.padding import padded, read_padding
from tqgguf.rotation.recorded import read_rotation
from tqgguf.rotation.rotation import Rotation

_TILE = 1 << 22  # weights
_BLOCK = 32  # the smallest run of weights whose error is judged
_ROTATION_ERROR = 1e-10  # relative squared error of a rotation in float32
# Rate-distortion theory gives 4^-bits for Gaussian weights, and scalar types reach 2-4 times that.
# A block with one outlier is the worst: half a step, set by the outlier, for each of the other 31
# weights is 32/4 * 4^-(bits - 3/2) = 64 * 4^-bits of its energy, and half that on average. A model
# may have one in every block.
_MEAN_FACTOR, _BLOCK_FACTOR = 32.0, 64.0
_LARGEST = 0.75  # noise of the weights' own size has 1 or more
_CALIBRATED_BLOCK = 32.0  # calibration moves weights that inputs hardly use by much more than that


@dataclass(frozen=True)
class Check:
    """One tensor's verdict. Errors are squared and relative to the energy of what they touch."""

    name: str
    type: str
    rel_mse: float
    worst_block: float  # relative to the block's energy
    worst_row: int
    allowed: float  # of worst_block
    mean_allowed: float  # of rel_mse

    @property
    def passed(self) -> bool:
        """Whether rounding explains the difference."""
        return self.worst_block <= self.allowed and self.rel_mse <= self.mean_allowed

    @property
    def complaint(self) -> str:
        """What is wrong, the block first."""
        if self.worst_block > self.allowed:
            return (
                f"{self.name}, row {self.worst_row}: a block differs by {self.worst_block:.3g} of "
                f"its energy, and {self.type} explains at most {self.allowed:.3g}"
            )
        return (
            f"{self.name} differs by {self.rel_mse:.3g} of its energy, and {self.type} explains "
            f"at most {self.mean_allowed:.3g}"
        )


def verify(
    quantized: Model,
    original: Model,
    *,
    threads: int | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> Iterator[Check]:
    """Check every tensor of `quantized` against `original`; a Check each, in file order.

    Raises MismatchError at once where names, shapes or metadata differ.
    """
    rotation = read_rotation(quantized)
    original = padded(original, read_padding(quantized))
    pairs = list(_pairs(quantized, original))
    _check_metadata(quantized, original)
    _check_types(quantized)
    weighed, calibrated = (
        quantized.get(f"tqgguf.{key}") is not None for key in ("imatrix", "calibration")
    )
    work = partial(_check, rotation, weighed, calibrated)
    for check in map_in_order(work, pairs, threads=threads):
        advance(quantized.tensors[check.name].size)
        yield check


def require(checks: list[Check], path: object) -> None:
    """Raise MismatchError unless every check passed."""
    failed = [c for c in checks if not c.passed]
    if failed:
        raise MismatchError(
            f"{path}: {max(failed, key=_excess).complaint} "
            f"({len(failed)} of {len(checks)} tensors fail)"
        )


def _excess(check: Check) -> float:
    """How many times what rounding explains."""
    return max(check.worst_block / check.allowed, check.rel_mse / check.mean_allowed)


def _pairs(quantized: Model, original: Model) -> Iterator[tuple[Tensor, Tensor]]:
    """Each tensor with its original; an untied head's is the embedding."""
    missing = [name for name in original.tensors if name not in quantized.tensors]
    if missing:
        raise MismatchError(f"{quantized.path}: {missing[0]} of {original.path} is missing")
    for name, tensor in quantized.tensors.items():
        tied = name == ends.HEAD and name not in original.tensors
        source = original.tensors.get(ends.EMBEDDING if tied else name)
        if source is None:
            raise MismatchError(f"{quantized.path}: {name} does not occur in {original.path}")
        if source.shape != tensor.shape:
            raise MismatchError(
                f"{quantized.path}: {name} has shape {tensor.shape}, expected {source.shape}"
            )
        yield tensor, source


def _check_metadata(quantized: Model, original: Model) -> None:
    """What decides how the network runs must be equal to the byte."""
    for key, value in original.metadata.items():
        decides = key.startswith(("general.architecture", original.architecture, "tokenizer."))
        if decides and quantized.metadata.get(key) != value:
            raise MismatchError(f"{quantized.path}: {key} differs from {original.path}")


def _check_types(quantized: Model) -> None:
    """What llama.cpp cannot compute with in its place makes it abort."""
    for tensor in quantized.tensors.values():
        if tensor.type in INTEGERS:
            continue
        if needs_f32(tensor) and tensor.type != "F32":
            raise MismatchError(
                f"{quantized.path}: {tensor.name} is {tensor.type}, but llama.cpp takes such a "
                "tensor element by element and aborts unless it is F32; quantize the model anew"
            )
        if len(tensor.shape) > 3 and not is_float(tensor.type):
            raise MismatchError(
                f"{quantized.path}: {tensor.name} is {tensor.type}, but llama.cpp convolves with "
                "F16 or F32 kernels alone; quantize the model anew"
            )


def _check(
    rotation: Rotation, weighed: bool, calibrated: bool, pair: tuple[Tensor, Tensor]
) -> Check:
    tensor, source = pair
    type = tensor.type
    block = TYPES[type].weights
    rows, columns = rotation.granule(tensor.name)
    cut = tiles(tensor.shape, granule=(rows, lcm(columns, block, _BLOCK)), weights=_TILE)
    parts = [_compare(rotation, tensor, source, tile, max(block, _BLOCK)) for tile in cut]
    error, energy = (sum(p[i] for p in parts) for i in (0, 1))
    worst, row = max((p[2:] for p in parts), default=(0.0, 0))
    moved = calibrated and not is_float(type)
    factor = math.inf if weighed and not is_float(type) else _BLOCK_FACTOR
    allowed = _CALIBRATED_BLOCK if moved else _allowed(type, factor)
    mean_allowed = _LARGEST if moved else _allowed(type, _MEAN_FACTOR)
    mean = error / energy if energy else error
    return Check(tensor.name, tensor.type, mean, worst, row, allowed, mean_allowed)


def _compare(
    rotation: Rotation, tensor: Tensor, source: Tensor, tile: Tile, block: int
) -> tuple[float, float, float, int]:
    """Error and energy of a tile, the worst block's relative error and its row."""
    x = source.read_tile(tile.rows, tile.columns)
    first = (tile.rows[0], tile.columns[0])
    x = rotation.apply(tensor.name, x, shape=tensor.shape, first=first)
    error = _block_sums(tensor.read_tile(tile.rows, tile.columns) - x, block)
    energy = _block_sums(x, block)
    floor = 0.01 * float(energy.mean())  # a block of near zeros is judged beside its neighbours
    relative = error / np.maximum(energy + floor, np.finfo(np.float64).tiny)
    relative = np.where(np.isfinite(relative), relative, np.inf)
    worst = int(relative.argmax())
    row = tile.rows[0] + worst // relative.shape[1]
    return float(error.sum()), float(energy.sum()), float(relative.flat[worst]), row


def _block_sums(x: F32, block: int) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    """Sums of squares over blocks of a row, the last one shorter: (rows, blocks) float64."""
    starts = np.arange(0, x.shape[1], block)
    return np.add.reduceat(np.square(x, dtype=np.float64), starts, axis=1)


def _allowed(type: str, factor: float) -> float:
    """The largest relative squared error that rounding to this type explains."""
    if is_float(type):
        kept = FLOATS[type].significand if type in FLOATS else FLOATS["F32"].significand
        return float(factor * 4.0**-kept) / 6 + _ROTATION_ERROR * _BLOCK_FACTOR
    bits = 8 * TYPES[type].bytes / TYPES[type].weights
    return min(_LARGEST, float(factor * 4.0**-bits))
