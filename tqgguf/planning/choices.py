"""From what a user asks for to a plan: the better rotation, and types for a budget."""

from collections.abc import Callable
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
from tqgguf.formats import FORMATS, dequantize, is_float, quantize
from tqgguf.kernels.dtypes import F32
from tqgguf.kernels.metrics import ratio, sum_squares
from tqgguf.models import Model, Tensor
from tqgguf.network import forward
from tqgguf.network.equivalence import compare
from tqgguf.network.forward import Tokens
from tqgguf.output.layout import TensorInfo, lay_out
from tqgguf.planning.allocation import Errors, candidates
from tqgguf.planning.header import output_metadata
from tqgguf.planning.matrices import is_matrix
from tqgguf.planning.plan import Options, Plan, make_plan
from tqgguf.planning.rounding import measure_errors
from tqgguf.rotation.architectures import LAYER
from tqgguf.rotation.folded import fold
from tqgguf.rotation.folding import EMBEDDING
from tqgguf.rotation.rotation import NO_ROTATION, Rotation

_ALIGNMENT = 32  # bytes lost at most after each tensor
_COMPARED_TOKENS = 1024  # on which --rotate auto runs both choices
_SAMPLED_WEIGHTS = 1 << 20  # of a matrix, for --rotate auto without a text
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
    if options.rotate == "auto":
        options, why = choose_rotation(model, options, tokens, threads=threads)
        notes.append(why)
    plan = make_plan(model, options)
    imatrix = None
    if options.imatrix is not None and tokens is None:
        imatrix = read_imatrix(options.imatrix)
        check_basis(imatrix, plan.rotation, options.imatrix)
        shapes = {t.name: t.shape for t in plan.tensors}
        imatrix = matched(imatrix, shapes, options.imatrix)
    budget = _budget(model, plan, options)
    if budget is not None:
        sensitivity = _sensitivity(model, plan, tokens, threads)
        errors = _type_errors(model, plan, imatrix, threads)
        plan = make_plan(model, options, budget=budget, sensitivity=sensitivity, errors=errors)
    if imatrix is not None and options.imatrix is not None:
        plan = _with_coverage(model, plan, imatrix, options.imatrix)
    return Prepared(replace(plan, notes=(*plan.notes, *notes)), tokens, imatrix)


def choose_rotation(
    model: Model, options: Options, tokens: Tokens | None, *, threads: int | None = None
) -> tuple[Options, str]:
    """Fused or none, whichever measures lower, and a line that says so.

    With tokens: KL divergence of the model rounded both ways. Without: mean relative squared error
    of the matrices of three layers, weighted as their inputs are by the norms' gains. Where
    nothing can be folded it is none.
    """
    none, fused = (replace(options, rotate=mode) for mode in ("none", "fused"))
    try:
        plans = [make_plan(model, choice) for choice in (none, fused)]
        gains = plans[1].rotation.with_vectors_of(model).diagonal()
    except UnsupportedModelError as error:
        return none, f"--rotate auto: none, because {error}"
    if tokens is not None:
        unit, few = "KL divergence", tokens[: _few(tokens)]
        plain, rotated = (_divergence(model, plan, few, threads) for plan in plans)
    else:
        unit = "mean relative error"
        plain, rotated = (
            _error(model, plan, seen, threads)
            for plan, seen in zip(plans, (gains, NO_ROTATION), strict=True)
        )
    better = fused if rotated < plain else none
    return better, (
        f"--rotate auto: {better.rotate}; {unit} {rotated:.4g} rotated and {plain:.4g} unrotated, "
        "both without error feedback"
    )


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


def _few(tokens: Tokens) -> int:
    return max(1, _COMPARED_TOKENS // int(tokens.shape[1]))


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


def _divergence(model: Model, plan: Plan, tokens: Tokens, threads: int | None) -> float:
    rounded = _rounded(fold(model, plan.rotation.with_vectors_of(model)), plan, threads)
    return compare(model, rounded, tokens).divergence


def _rounded(folded: Model, plan: Plan, threads: int | None) -> Model:
    """The model as plain rounding leaves it, tensor by tensor as it is read."""
    types = {t.name: t.type for t in plan.tensors if t.type in FORMATS and not is_float(t.type)}
    tensors = {
        name: t.derived(_through(t, types[name], threads)) if name in types else t
        for name, t in folded.tensors.items()
    }
    return replace(folded, tensors=tensors)


def _through(tensor: Tensor, type: str, threads: int | None) -> Callable[[int, int], F32]:
    def rows(start: int, stop: int) -> F32:
        data = quantize(tensor.rows(start, stop), type, threads=threads)
        return dequantize(data, type, tensor.n_in)

    return rows


def _error(model: Model, plan: Plan, seen: Rotation, threads: int | None) -> float:
    """Mean relative squared error of the matrices of the first, the middle and the last layer.

    seen: what the weights are multiplied by before errors are summed. A rotated matrix holds the
    gain of the norm above it, an unrotated one has to be given it.
    """
    rotation: Rotation = plan.rotation.with_vectors_of(model)
    folded = fold(model, rotation)
    layers = sorted({int(found["layer"]) for t in plan.tensors if (found := LAYER.match(t.name))})
    chosen = {layers[i] for i in (0, (len(layers) - 1) // 2, -1)} if layers else set()
    prefixes = tuple(f"blk.{i}." for i in chosen)
    errors = []
    for t in plan.tensors:
        if t.name.startswith(prefixes) and is_matrix(model.tensors[t.source]):
            tensor = folded.tensors[t.name]
            x = tensor.rows(0, min(tensor.n_rows, max(1, _SAMPLED_WEIGHTS // tensor.n_in)))
            rounded = dequantize(quantize(x, t.type, threads=threads), t.type, tensor.n_in)
            error, energy = (
                sum_squares(seen.apply(t.name, v, shape=tensor.shape)) for v in (rounded - x, x)
            )
            errors.append(ratio(error, energy))
    return float(np.mean(errors)) if errors else 0.0
