"""A model in its original basis: the rotation that it records undone as its tensors are read."""

from dataclasses import replace
from functools import partial

from tqgguf.kernels.dtypes import F32
from tqgguf.models.model import Model, Tensor
from tqgguf.rotation.padding import unpadded
from tqgguf.rotation.recorded import read_rotation
from tqgguf.rotation.rotation import PREFIX, Rotation


def restored(model: Model) -> Model:
    """The model in its original basis: the recorded rotation undone as rows are read, then cut.

    An output head that the fold untied stays a tensor of its own.
    """
    rotation = read_rotation(model)
    tensors = {
        name: t.derived(partial(_restored_rows, rotation, t)) if name in rotation.sides else t
        for name, t in model.tensors.items()
    }
    cut = unpadded(replace(model, tensors=tensors))
    metadata = {k: v for k, v in cut.metadata.items() if not k.startswith(PREFIX)}
    return Model(model.path, metadata, cut.tensors)


def _restored_rows(rotation: Rotation, tensor: Tensor, start: int, stop: int) -> F32:
    """Rows start..stop in the original basis; whole granules are read and cut."""
    granule, _ = rotation.granule(tensor.name)
    first, last = start // granule * granule, -(-stop // granule) * granule
    rows = rotation.undo(
        tensor.name, tensor.rows(first, last), shape=tensor.shape, first=(first, 0)
    )
    return rows[start - first : stop - first]
