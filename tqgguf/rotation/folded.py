"""A model as it is after its rotation was folded in, its tensors rotated when they are read."""

from dataclasses import replace
from functools import partial

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
    rows = partial(_rows, tensor, rotation, name)
    return tensor.derived(rows, type="F32", name=name)


def _rows(tensor: Tensor, rotation: Rotation, name: str, start: int, stop: int) -> F32:
    """Rotate the rows asked for, with as many around them as the rotation mixes."""
    granule = rotation.granule(name)[0]
    first = start // granule * granule
    last = min(tensor.n_rows, -(-stop // granule) * granule)
    shape = tensor.shape if len(tensor.shape) > 1 else (1, tensor.n_in)
    x = rotation.apply(name, tensor.rows(first, last), shape=shape, first=(first, 0))
    return x[start - first : stop - first]
