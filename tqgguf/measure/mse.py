"""What rotation does to the weights of a model: errors with it and without, matrix by matrix.

Errors are relative to the energy of the matrix in the basis that is quantized, since a fold also
multiplies a norm's gain into the matrices that read it. They tell how well weights fit a grid, not
what a model loses: where the energies of the inputs are known (rotation/energies.py), so are the
errors of the outputs, and the verdict is about those.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tqgguf.errors import PlanError, TqggufError, UnsupportedModelError
from tqgguf.formats import FORMATS, find_format, is_float
from tqgguf.kernels.dtypes import F32
from tqgguf.measure.gains import MatrixReport
from tqgguf.measure.matrix import Matrix
from tqgguf.models import Model, Tensor
from tqgguf.planning.matrices import is_matrix
from tqgguf.planning.recipes import recipe
from tqgguf.rotation import ends, folding
from tqgguf.rotation.energies import Energies, rotated_energies
from tqgguf.rotation.recorded import read_rotation
from tqgguf.rotation.rotation import Rotation
from tqgguf.rotation.vectors import BALANCE

TYPES = tuple(dict.fromkeys(recipe(name).matrix for name in ("tq-q4", "tq-q3", "tq-q2")))


def studied_rotation(
    model: Model,
    *,
    block: int | None = None,
    seed: int = 0,
    energies: Energies | None = None,
) -> tuple[Rotation, str]:
    """The rotation `quantize` would fold in, or each matrix alone where it cannot; and a sentence.

    Raises PlanError for models that are rotated already and for a block that does not fit.
    """
    if read_rotation(model).mode != "none":
        raise PlanError(f"{model.path}: already rotated by tqgguf; measure the model it came from")
    try:
        rotation = folding.fused(model, block=block, seed=seed, energies=energies)
        rotation = rotation.with_vectors_of(model)
    except UnsupportedModelError as error:
        names = [t.name for t in model.tensors.values() if is_matrix(t)]
        rotation = folding.per_tensor(model, names, block=block)
        reason = str(error).removeprefix(f"{model.path}: ").partition(";")[0]
        return rotation, (
            f"each matrix rotated alone, in blocks of {rotation.block} along its input "
            f"(not runnable in llama.cpp; a fold is impossible: {reason})"
        )
    within = f", {rotation.value_block} within value heads" if rotation.value_block else ""
    balanced = ", FFN channels balanced" if any(BALANCE in n for n in rotation.vectors) else ""
    return rotation, (
        "fused, as `quantize` folds it: "
        f"blocks of {rotation.block} along the residual stream{within}{balanced}"
    )


def measure_weights(
    model: Model,
    rotation: Rotation,
    *,
    types: Sequence[str] = TYPES,
    sample_rows: int | None = None,
    energies: Energies | None = None,
    threads: int | None = None,
) -> Iterator[MatrixReport]:
    """Measure every matrix that `rotation` or a recipe would treat, in file order.

    sample_rows: rows read of each matrix; None reads all and quantizes enough to reach ACCURACY.
    energies: of the inputs in the original basis, for the errors of the outputs.
    Raises PlanError at the first step for an unknown type, a quantized model, or rows that fit no
    type.
    """
    names = [find_format(name).name for name in types]
    matrices = _matrices(model, rotation)
    _check(model, matrices, names)
    for name, tensor in matrices.items():
        try:
            fit = [t for t in names if tensor.n_in % FORMATS[t].block_size == 0]
            unfit = [t for t in names if t not in fit]
            inputs = _inputs(name, tensor, rotation, energies) if energies else None
            matrix = Matrix(name, tensor, rotation, fit, sample_rows, inputs, threads)
            yield matrix.measure(unfit)
        except TqggufError as error:
            raise type(error)(f"{name}: {error}") from None


def _inputs(name: str, tensor: Tensor, rotation: Rotation, energies: Energies) -> tuple[F32, F32]:
    """Energies as they are and where the rotated weights are stored: (n_mat, n_in) each.

    A matrix of which nothing is known, and the embedding, where tokens are looked up, has ones.
    """
    found = energies(name)
    if found is None:
        found = np.ones((math.prod(tensor.shape[:-2]), tensor.n_in), np.float32)
    return found, rotated_energies(rotation, name, found, tensor.shape)


def _matrices(model: Model, rotation: Rotation) -> dict[str, Tensor]:
    """The matrices of the output by name; an untied head is the embedding's tensor once more."""
    matrices = {t.name: t for t in model.tensors.values() if is_matrix(t)}
    if rotation.mode == "fused" and ends.tied_head(model):
        matrices[ends.HEAD] = model.tensors[ends.EMBEDDING]
    return matrices


def _check(model: Model, matrices: Mapping[str, Tensor], types: Sequence[str]) -> None:
    if not matrices:
        raise PlanError(f"{model.path}: no weight matrices to measure")
    for name, tensor in matrices.items():
        if not is_float(tensor.type):
            raise PlanError(
                f"{model.path}: {name} is already {tensor.type}; measure the F16, BF16 or F32 "
                "model, or look at a finished file with `tqgguf compare`"
            )
    for type in types:
        block = FORMATS[type].block_size
        if all(tensor.n_in % block for tensor in matrices.values()):
            longest = max(tensor.n_in for tensor in matrices.values())
            raise PlanError(
                f"{model.path}: no row fits {type}'s blocks of {block} (the longest is {longest}); "
                "choose a type of smaller blocks with --types"
            )
