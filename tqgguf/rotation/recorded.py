"""The rotation that a file records."""

from typing import Any, get_args

from tqgguf.errors import FileFormatError
from tqgguf.kernels import hadamard
from tqgguf.models.model import Model, Tensor
from tqgguf.rotation.axis import Axis
from tqgguf.rotation.rotation import NO_ROTATION, PREFIX, VERSION, Mode, Rotation
from tqgguf.rotation.steps import Sides
from tqgguf.rotation.vectors import recorded_vectors


def read_rotation(model: Model) -> Rotation:
    """The rotation recorded in a model's metadata; NO_ROTATION where there is none.

    Raises FileFormatError for a record of a later version or one that contradicts itself.
    """
    version = model.get("tqgguf.version")
    if version is None:
        return NO_ROTATION
    if version != VERSION:
        raise FileFormatError(
            f"{model.path}: rotation metadata of version {version}; this tqgguf reads {VERSION}"
        )
    if (
        model.get(f"{PREFIX}rotation.mode") == "none"
        and f"{PREFIX}rotation.kind" not in model.metadata
    ):
        return NO_ROTATION
    names, columns, rows = (_texts(model, key) for key in ("tensors", "columns", "rows"))
    if not len(names) == len(columns) == len(rows):
        raise FileFormatError(f"{model.path}: the rotation metadata's arrays differ in length")
    sides = _recorded_sides(model, columns, rows)
    rotation = Rotation(
        mode=_one_of(model, "mode", get_args(Mode)),
        kind=_one_of(model, "kind", hadamard.KINDS),
        block=_number(model, "block_size"),
        value_block=_number(model, "value_block_size"),
        seed=_number(model, "seed"),
        sides=dict(zip(names, sides, strict=True)),
        vectors=recorded_vectors(model),
    )
    for name in rotation.sides.keys() & model.tensors.keys():
        _check_sides(rotation, model, model.tensors[name])
    return rotation


def _recorded_sides(model: Model, columns: list[str], rows: list[str]) -> list[Sides]:
    try:
        return [Sides.parse(*texts) for texts in zip(columns, rows, strict=True)]
    except FileFormatError as error:
        raise FileFormatError(f"{model.path}: rotation metadata: {error}") from None


def _texts(model: Model, key: str) -> list[str]:
    value = model.get(f"tqgguf.rotation.{key}", [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise FileFormatError(f"{model.path}: tqgguf.rotation.{key} is no array of texts")
    return value


def _one_of(model: Model, key: str, choices: tuple[Any, ...]) -> Any:
    value = _required(model, key)
    if value not in choices:
        raise FileFormatError(
            f"{model.path}: tqgguf.rotation.{key} is {value!r}; expected {', '.join(choices)}"
        )
    return value


def _number(model: Model, key: str) -> int:
    value = _required(model, key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
        raise FileFormatError(f"{model.path}: tqgguf.rotation.{key} is {value!r}, no 32-bit number")
    return value


def _check_sides(rotation: Rotation, model: Model, tensor: Tensor) -> None:
    """Refuse steps that are unknown or that the tensor's axes do not fit."""
    sides = rotation.sides[tensor.name]
    if sides.rows and len(tensor.shape) < 2:
        raise FileFormatError(f"{model.path}: rotation metadata: {tensor.name} has no rows to turn")
    for steps, axis in ((sides.columns, -1), (sides.rows, 0)):
        along = Axis(axis, (0, 0), tensor.shape)
        for step in steps:
            if not rotation.fits(step, along):
                raise FileFormatError(
                    f"{model.path}: rotation metadata: step {str(step)!r} does not fit the "
                    f"{along.size} {'rows' if axis == 0 else 'columns'} of {tensor.name}"
                )


def _required(model: Model, key: str) -> Any:
    value = model.get(f"tqgguf.rotation.{key}")
    if value is None:
        raise FileFormatError(f"{model.path}: tqgguf.rotation.{key} is missing")
    return value
