"""A model as it is after its rotation was folded in, its tensors rotated when they are read."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import lcm

from tqgguf.ggml import TYPES
from tqgguf.kernels.dtypes import F32
from tqgguf.models import Model, Tensor
from tqgguf.rotation import ends
from tqgguf.rotation.rotation import Rotation


def fold(model: Model, rotation: Rotation) -> Model:
    """The model in the rotated basis, with an output head of its own if the fold unties it.

    rotation: with its vectors. The tensors are float32 and the network's function is unchanged.
    """
    tensors = dict(model.tensors)
    if rotation.mode == "fused" and ends.tied_head(model):
        tensors[ends.HEAD] = replace(tensors[ends.EMBEDDING], name=ends.HEAD)
    rotated = {name: _rotated(tensor, rotation, name) for name, tensor in tensors.items()}
    return replace(model, tensors=rotated)


def _rotated(tensor: Tensor, rotation: Rotation, name: str) -> Tensor:
    if not rotation.sides.get(name):
        return tensor
    tile = partial(_tile, tensor, rotation, name)
    return tensor.derived(partial(_rows, tile, tensor.n_in), tile=tile, type="F32", name=name)


def _rows(tile: Callable[[int, int, int, int], F32], n_in: int, start: int, stop: int) -> F32:
    return tile(start, stop, 0, n_in)


def _tile(
    tensor: Tensor, rotation: Rotation, name: str, start: int, stop: int, first: int, last: int
) -> F32:
    """Rotate the rows and columns asked for, with as many around them as the rotation mixes."""
    rows, columns = rotation.granule(name)
    top, bottom = _around(start, stop, rows, tensor.n_rows)
    left, right = _around(first, last, lcm(columns, TYPES[tensor.type].weights), tensor.n_in)
    shape = tensor.shape if len(tensor.shape) > 1 else (1, tensor.n_in)
    x = tensor.read_tile((top, bottom), (left, right))
    x = rotation.apply(name, x, shape=shape, first=(top, left))
    return x[start - top : stop - top, first - left : last - left]


def _around(begin: int, end: int, granule: int, size: int) -> tuple[int, int]:
    """The range of whole granules that holds a range."""
    return begin // granule * granule, min(size, -(-end // granule) * granule)
