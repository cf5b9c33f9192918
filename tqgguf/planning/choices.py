"""From what a user asks for to a plan: the better rotation, and types for a budget."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tqgguf.calibration.cached import kept_statistics
from tqgguf.calibration.imatrix import Imatrix, basis_of, check_basis, matched, read_imatrix
from tqgguf.calibration.kept import Arrays
from tqgguf.calibration.sensitivity import measure
from tqgguf.calibration.statistics import input_energies
from tqgguf.calibration.tokens import read_tokens
from tqgguf.errors import PlanError, UnsupportedModelError
from tqgguf.formats import is_float
from tqgguf.models import Model
from tqgguf.network import forward
from tqgguf.network.forward import Tokens
from tqgguf.output.layout import TensorInfo, lay_out
from tqgguf.planning.allocation import Errors, candidates
from tqgguf.planning.header import output_metadata
from tqgguf.planning.matrices import is_matrix
from tqgguf.planning.plan import Options, Plan, make_plan
from tqgguf.planning.rotations import choose_rotation
from tqgguf.planning.rounding import measure_errors
from tqgguf.rotation.folded import fold
from tqgguf.rotation.folding import EMBEDDING
from tqgguf.rotation.rotation import NO_ROTATION

_ALIGNMENT = 32  # bytes lost at most after each tensor
_KEY = "0" * 32


@dataclass(frozen=True)
class Prepared:
    """The plan, the tokens to calibrate on if any, and the importance matrix if one is used."""

    plan: Plan
    tokens: Tokens | None = None
    imatrix: Imatrix | None = None


def prepare(model: Model, options: Options, *, threads: int | None = None) -> Prepared:
    """Decide everything that has to be decided before weights are written.

    Raises PlanError for options that contradict each other, and whatever reading the text or the
    importance matrix raises.
    """
    if options.target_bpw is not None and options.target_size is not None:
        raise PlanError("--target-bpw and --target-size: give one of them")
    tokens, note = _tokens(model, options)
    notes = [note] if note else []
    imatrix = None
    if options.imatrix is not None and tokens is None:
        imatrix = read_imatrix(options.imatrix)
    known = imatrix if imatrix and imatrix.basis == basis_of(NO_ROTATION) else None
    if options.rotate == "auto":
        energies = known.importance if known else None
        options, why = choose_rotation(model, options, energies, threads=threads)
        notes.append(why)
    plan = make_plan(model, options)
    if imatrix is not None and options.imatrix is not None:
        check_basis(imatrix, plan.rotation, options.imatrix)
        shapes = {t.name: t.shape for t in plan.tensors}
        imatrix = matched(imatrix, shapes, options.imatrix)
    budget = _budget(model, plan, options)
    if budget is None and plan.mostly_ragged:
        budget = plan.n_bytes
    if budget is not None:
        sensitivity = _sensitivity(model, plan, tokens, threads)
        errors = _type_errors(model, plan, imatrix, threads)
        plan = make_plan(model, options, budget=budget, sensitivity=sensitivity, errors=errors)
    if imatrix is not None and options.imatrix is not None:
        plan = _with_coverage(model, plan, imatrix, options.imatrix)
    return Prepared(replace(plan, notes=(*plan.notes, *notes)), tokens, imatrix)


def take_statistics(
    model: Model, plan: Plan, tokens: Tokens, dataset: str, *, threads: int | None = None
) -> Imatrix:
    """The importance matrix of the model in the plan's basis."""
    folded = fold(model, plan.rotation.with_vectors_of(model))
    basis = basis_of(plan.rotation)
    return input_energies(folded, tokens, basis=basis, dataset=dataset, threads=threads)


def _tokens(model: Model, options: Options) -> tuple[Tokens | None, str]:
    """The text's tokens, and a note; no tokens where only the importance matrix can be used."""
    text, imatrix = options.calibrate, options.imatrix
    if text is None:
        return None, ""
    try:
        forward.context(model, 1)
    except UnsupportedModelError as error:
        if imatrix is None:
            raise UnsupportedModelError(
                f"{error}; --calibrate needs one: give --imatrix FILE as well, and errors are "
                "weighed by that instead"
            ) from error
        return None, f"{error}: errors are weighed by {imatrix} instead of calibrated on {text}"
    tokens, tokenizer = read_tokens(model, text, limit=options.calibrate_tokens)
    idle = f"; {imatrix} was not needed" if imatrix else ""
    return tokens, f"calibrated on {tokens.size:,} tokens of {text}, made by {tokenizer}{idle}"


def _budget(model: Model, plan: Plan, options: Options) -> int | None:
    """Bytes of all tensors that the target leaves."""
    if options.target_bpw is not None:
        return int(options.target_bpw * plan.source_weights / 8)
    if options.target_size is None:
        return None
    rotation = plan.rotation.with_vectors_of(model)
    infos = [TensorInfo(t.name, t.shape, t.type) for t in plan.tensors]
    weighed_by = _KEY if options.imatrix else ""
    header = lay_out(output_metadata(model, plan, rotation, _KEY, weighed_by), infos).header
    return options.target_size - len(header) - _ALIGNMENT * (len(infos) + 2)


def _sensitivity(
    model: Model, plan: Plan, tokens: Tokens | None, threads: int | None
) -> dict[str, float] | None:
    if tokens is None:
        return None
    names = [t.name for t in plan.tensors if is_matrix(model.tensors[t.source])]
    rotation = plan.rotation.with_vectors_of(model)

    def found() -> Arrays:
        by_name = measure(fold(model, rotation), names, tokens, threads=threads)
        return [np.array([by_name[name] for name in names])]

    (values,) = kept_statistics(model, rotation, tokens).once("sensitivity", found)
    return dict(zip(names, values.tolist(), strict=True))


def _type_errors(
    model: Model, plan: Plan, imatrix: Imatrix | None, threads: int | None
) -> dict[str, Errors]:
    """The errors of the types that each matrix may become."""
    folded = fold(model, plan.rotation.with_vectors_of(model))
    types = {
        t.name: candidates(t.shape[-1]) for t in plan.tensors if is_matrix(model.tensors[t.source])
    }
    energies = imatrix.importance if imatrix else lambda _: None
    return measure_errors(folded, types, energies, threads=threads)


def _with_coverage(model: Model, plan: Plan, imatrix: Imatrix, path: Path) -> Plan:
    """The plan, with what to say of an imatrix that some of the matrices to be rounded are not in.

    The embedding is looked up, not multiplied with, and no imatrix has it.
    """
    rounded = [
        t.name
        for t in plan.tensors
        if is_matrix(model.tensors[t.source]) and not is_float(t.type) and t.name != EMBEDDING
    ]
    missing = [name for name in rounded if name not in imatrix.sums]
    if not missing and rounded:
        return plan
    covers = f"{path} covers {len(rounded) - len(missing)} of {len(rounded)} matrices"
    if len(missing) == len(rounded):
        why = "it belongs to another model" if rounded else "nothing is rounded"
        return replace(plan, idle=(*plan.idle, f"{covers}, so it has no effect: {why}"))
    others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    note = f"{covers}; the errors of {missing[0]}{others} are weighed alike"
    return replace(plan, notes=(*plan.notes, note))
