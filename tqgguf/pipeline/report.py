"""What became of one tensor, and how the journal of an interrupted run keeps that."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from tqgguf.kernels import metrics
from tqgguf.planning.plan import PlannedTensor


@dataclass(frozen=True)
class Report:
    """What became of one tensor.

    rel_mse is sum (w - w')^2 / sum w^2 in the basis that is stored, rel_mse_unrotated the same for
    the same type without rotation: the control. Large tensors are measured on a sample of rows.
    None where nothing was rounded or rotated.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    n_bytes: int
    rel_mse: float
    rel_mse_unrotated: float | None
    seconds: float
    reason: str = ""
    workers: tuple[str, ...] = ()  # of a cluster, that did it


@dataclass
class Outcome:
    """What came of a task: sums over its tiles' sampled weights, and what it took."""

    n_bytes: int = 0
    error: float = 0.0
    energy: float = 0.0
    control_error: float = 0.0
    control_energy: float = 0.0
    seconds: float = 0.0
    workers: tuple[str, ...] = ()

    @classmethod
    def total(cls, results: Sequence["Outcome"]) -> "Outcome":
        """The results of several tasks as one."""
        sums = {f.name: sum(getattr(r, f.name) for r in results) for f in fields(cls)[:-1]}
        return cls(**sums, workers=tuple(sorted({w for r in results for w in r.workers})))


def report_on(planned: PlannedTensor, result: Outcome) -> Report:
    """What is said of a tensor whose tiles came to this."""
    control = result.control_error, result.control_energy
    return Report(
        planned.name,
        planned.type,
        planned.shape,
        planned.n_bytes,
        metrics.ratio(result.error, result.energy),
        metrics.ratio(*control) if control[1] else None,
        result.seconds,
        planned.reason,
        result.workers,
    )


def recorded(note: dict[str, Any]) -> Report:
    """A report as the journal kept it."""
    values = {field.name: note[field.name] for field in fields(Report)}
    sequences = {name: tuple(note[name]) for name in ("shape", "workers")}
    return Report(**{**values, **sequences})
