"""Find NaN and Inf among a model's weights, once something has gone wrong."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from tqgguf.errors import MismatchError, PlanError, WeightError
from tqgguf.models.model import Model, Tensor

_READ = 1 << 21  # weights at a time


@contextmanager
def naming_damage(model: Model, *, with_path: bool = False) -> Iterator[None]:
    """Name the tensor that holds NaN or Inf where they are what made something else fail.

    They spread: what fails may be a fold, a matrix that was multiplied by a norm's gain, or a pass
    over a text. Only then are all weights looked at. Raises WeightError, with the file's name where
    there are several models.
    """
    where = f"{model.path}: " if with_path else ""
    try:
        yield
    except (WeightError, MismatchError, PlanError, np.linalg.LinAlgError) as error:
        found = find_damage(model)
        if found:
            raise WeightError(f"{where}{found}") from error
        raise


def find_damage(model: Model) -> str:
    """The first tensor that holds NaN or Inf, and how many; "" if none does. Reads all weights."""
    found = ((tensor.name, damage(tensor)) for tensor in model.tensors.values())
    return next((f"{name}: {what}" for name, what in found if what), "")


def damage(tensor: Tensor) -> str:
    """How many weights of a tensor are NaN or infinite, and what that means; "" if none are."""
    step = max(1, _READ // max(1, tensor.n_in))
    nan = inf = 0
    for start in range(0, tensor.n_rows, step):
        rows = tensor.rows(start, min(start + step, tensor.n_rows))
        nan, inf = nan + int(np.isnan(rows).sum()), inf + int(np.isinf(rows).sum())
    if not nan + inf:
        return ""
    return (
        f"{nan:,} NaN and {inf:,} infinite weights of {tensor.size:,}; "
        "the model is damaged or was saved in a type too small for it"
    )
