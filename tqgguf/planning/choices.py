"""From what a user asks for to a plan: the better rotation, and types for a budget."""

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqgguf.calibration.imatrix import UNROTATED, Imatrix, check_basis
from tqgguf.calibration.statistics import input_energies
from tqgguf.calibration.tokens import DEFAULT_TOKENS, LONGEST_CONTEXT
from tqgguf.errors import PlanError, TqggufError, UnsupportedModelError
from tqgguf.formats import is_float
from tqgguf.kernels.dtypes import F32
from tqgguf.machine.devices import find_device
from tqgguf.machine.machine import Machine
from tqgguf.machine.threads import few
from tqgguf.models import Model
from tqgguf.models.damage import naming_damage
from tqgguf.network.forward import Tokens
from tqgguf.output.layout import Layout, TensorInfo, lay_out
from tqgguf.planning.allocation import Errors
from tqgguf.planning.budget import types_to_spend_on
from tqgguf.planning.header import output_metadata
from tqgguf.planning.inputs import Inputs, find_inputs
from tqgguf.planning.matrices import is_matrix
from tqgguf.planning.paddings import choose_padding
from tqgguf.planning.plan import Options, Plan
from tqgguf.planning.planner import check_tensors, make_plan
from tqgguf.planning.rotations import choose_rotation
from tqgguf.planning.rounding import measure_errors
from tqgguf.planning.sensitivities import find_sensitivity
from tqgguf.rotation.ends import EMBEDDING, HEAD
from tqgguf.rotation.energies import Energies, rotated_energies
from tqgguf.rotation.folded import fold
from tqgguf.rotation.padding import Padding, padded
from tqgguf.rotation.rotation import Rotation

_ALIGNMENT = 32  # bytes lost at most after each tensor
_KEY = "0" * 32
_QUICK = 1 << 28  # weights of a model that is measured in seconds


@dataclass(frozen=True)
class Prepared:
    """The plan, what is known of the inputs, and why the rotation is what it is, if it was chosen.

    model: with its rows padded, where they are. importance: see `pipeline.convert`. calibration:
    what it takes, if there is one.
    """

    model: Model
    plan: Plan
    inputs: Inputs
    importance: Energies
    why: str = ""
    calibration: str = ""

    @property
    def tokens(self) -> Tokens | None:
        """What to round on with error feedback, (n_seq, n_tokens) int32."""
        return self.inputs.tokens

    @property
    def file_bytes(self) -> int:
        """About the bytes of the whole output, with what its header says of the rotation."""
        return _layout(self.model, self.plan, self.plan.rotation).size


def prepare(
    model: Model, options: Options, machine: Machine = Machine(), *, measure: bool = True
) -> Prepared:
    """Decide everything that has to be decided before weights are written.

    measure: may weights be read for it? Without it the plan is what is known from the header.
    Raises PlanError for options that contradict each other, WeightError naming a tensor with NaN or
    Inf where that matters, and whatever reading the text or the importance matrix raises.
    """
    with naming_damage(model):
        return _prepare(model, options, machine, measure=measure)


def _check_kind(model: Model) -> None:
    """Refuse what is a GGUF file and no network."""
    if model.instead:
        raise UnsupportedModelError(f"{model.path}: is {model.instead}")


def _prepare(model: Model, options: Options, machine: Machine, *, measure: bool) -> Prepared:
    if options.target_bpw is not None and options.target_size is not None:
        raise PlanError("--target-bpw and --target-size: give one of them")
    _check_kind(model)
    check_tensors(model)
    inputs = find_inputs(
        model, options, machine, measure=measure, meanwhile=partial(_get_ready, model, options)
    )
    padding, kept = choose_padding(model, options)
    model = padded(model, padding)
    known = padding.energies(inputs.energies) if inputs.energies else None
    why = ""
    if options.rotate == "auto":
        choose = choose_rotation if measure else _likely_rotation
        options, why = choose(model, options, known, threads=machine.threads)
    planned = partial(_plan, model, options, inputs, energies=known)
    plan = planned()
    if options.imatrix is not None and inputs.imatrix is not None and inputs.tokens is None:
        check_basis(inputs.imatrix, plan.rotation, options.imatrix)
    if measure or inputs.imatrix is not None:  # vectors are read once, for all that follows
        rotation = plan.rotation.with_vectors_of(model, threads=few(machine.threads))
        plan = replace(plan, rotation=rotation)
    energies = _stored_energies(plan, inputs.imatrix, padding)
    budget = _budget(model, plan, options)
    dealt = plan.recipe.dealt and inputs.energies is not None
    if budget is None and (plan.mostly_ragged or dealt):
        budget = plan.n_bytes
    if budget is not None:
        sensitivity, said = find_sensitivity(model, plan, inputs, energies, machine)
        inputs = replace(inputs, notes=(*inputs.notes, *said))
        errors = _type_errors(model, plan, budget, energies, machine) if measure else None
        chosen = planned(budget=budget, sensitivity=sensitivity, errors=errors)
        plan = replace(chosen, rotation=plan.rotation)
    if options.imatrix is not None and inputs.imatrix is not None and inputs.tokens is None:
        plan, inputs = _with_coverage(model, plan, inputs, options.imatrix)
    importance = energies if inputs.tokens is None else _unknown
    calibrates = inputs.effort == "best" and plan.rounded_weights > 0
    takes = _expectation(model, plan, inputs, options, machine) if calibrates else ""
    notes = (*plan.notes, *kept, *filter(None, (takes, why)), *inputs.notes)
    return Prepared(model, replace(plan, notes=notes), inputs, importance, why, takes)


def _plan(model: Model, options: Options, inputs: Inputs, **more: Any) -> Plan:
    """The plan that these inputs lead to; more: see `make_plan`."""
    plan = make_plan(model, options, **more)
    return replace(plan, measured_on=inputs.measured_on)


def _likely_rotation(
    model: Model, options: Options, energies: Energies | None, *, threads: int | None
) -> tuple[Options, str]:
    """What costs nothing, if the architecture has it, in the place of `auto`; see `rotations`."""
    del energies, threads  # only weights could tell more
    values = replace(options, rotate="values")
    try:
        make_plan(model, values)
    except UnsupportedModelError as error:
        return replace(options, rotate="none"), f"--rotate auto: none is shown, because {error}"
    return values, "--rotate auto: values is shown; before it quantizes, weights decide"


def _get_ready(model: Model, options: Options) -> None:
    """Do what has to be done for a calibration whatever its text is."""
    from tqgguf.calibration import cached, forecast  # slow to import, seldom needed

    del cached
    with suppress(TqggufError):  # whoever plans in earnest is told
        if options.rotate == "auto":
            options, _ = _likely_rotation(model, options, None, threads=None)
        types = make_plan(model, options).matrix_types
        forecast.seconds(model, types, (1, LONGEST_CONTEXT), workers=1)


def _expectation(
    model: Model, plan: Plan, inputs: Inputs, options: Options, machine: Machine
) -> str:
    """What calibrating will take; nothing where it cannot be done, or a card does it."""
    from tqgguf.calibration.forecast import expectation  # slow to import, seldom needed

    if not find_device(machine.device).is_cpu:
        return ""
    if inputs.tokens is not None:
        n_seq, n_tokens = inputs.tokens.shape
    else:
        n_tokens = LONGEST_CONTEXT
        n_seq = -(-(options.calibrate_tokens or DEFAULT_TOKENS) // n_tokens)
    try:
        return expectation(model, plan.matrix_types, (n_seq, n_tokens), machine)
    except UnsupportedModelError:
        return ""


def is_quick(model: Model) -> bool:
    """Whether a plan may measure, for being of a small model."""
    return sum(t.size for t in model.tensors.values()) <= _QUICK


def _unknown(name: str) -> None:
    """The importance of columns of which nothing is known."""


def _stored_energies(plan: Plan, imatrix: Imatrix | None, padding: Padding) -> Energies:
    """The energies of what each tensor reads, in the basis in which its weights are rounded.

    A tied embedding reads what the head does that it also is.
    """
    if imatrix is None:
        return _unknown
    rotation = plan.rotation
    shapes = {t.name: t.shape for t in plan.tensors}
    is_tied = HEAD not in shapes and imatrix.importance(HEAD) is not None
    known = padding.energies(imatrix.importance)

    def energies(name: str) -> F32 | None:
        found = known(HEAD if is_tied and name == EMBEDDING else name)
        if found is None or imatrix.basis != UNROTATED:
            return found
        return rotated_energies(rotation, name, found, shapes[name])

    return energies


def take_statistics(model: Model, inputs: Inputs, machine: Machine = Machine()) -> Imatrix:
    """The importance matrix of the text that was used, all of its tokens that were.

    Raises PlanError where there was no text.
    """
    if inputs.text is not None and inputs.tokens is not None:
        name = inputs.text.name
        where = find_device(machine.device)
        return input_energies(
            model, inputs.tokens, dataset=name, threads=machine.threads, device=where
        )
    if inputs.text is None or inputs.imatrix is None:
        raise PlanError("--save-imatrix needs a text, and none was used")
    return inputs.imatrix


def _budget(model: Model, plan: Plan, options: Options) -> int | None:
    """Bytes of all tensors that the target leaves."""
    if options.target_bpw is not None:
        return int(options.target_bpw * plan.source_weights / 8)
    if options.target_size is None:
        return None
    header = _layout(model, plan, plan.rotation.with_vectors_of(model)).header
    return options.target_size - len(header) - _ALIGNMENT * (len(plan.tensors) + 2)


def _layout(model: Model, plan: Plan, rotation: Rotation) -> Layout:
    """The layout of one file, whatever its errors are weighed by."""
    infos = [TensorInfo(t.name, t.shape, t.type) for t in plan.tensors]
    return lay_out(output_metadata(model, plan, rotation, _KEY, _KEY), infos)


def _type_errors(
    model: Model, plan: Plan, budget: int, energies: Energies, machine: Machine
) -> dict[str, Errors]:
    """The errors of the types that each matrix may become for so many bytes of all tensors."""
    folded = fold(model, plan.rotation.with_vectors_of(model))
    offered = types_to_spend_on(model, plan, budget)
    types = {name: [t for t in found if not is_float(t)] for name, found in offered.items()}
    return measure_errors(folded, types, energies, threads=machine.threads)


def _with_coverage(model: Model, plan: Plan, inputs: Inputs, path: Path) -> tuple[Plan, Inputs]:
    """The plan, with what to say of an imatrix that some of the matrices to be rounded are not in.

    One that none of them is in is no input. The embedding is looked up, not multiplied with, and no
    imatrix has it.
    """
    rounded = [
        t.name
        for t in plan.tensors
        if is_matrix(model.tensors[t.source]) and not is_float(t.type) and t.name != EMBEDDING
    ]
    known = inputs.imatrix.sums if inputs.imatrix else {}
    missing = [name for name in rounded if name not in known]
    if not missing and rounded:
        return plan, inputs
    covers = f"{path} covers {len(rounded) - len(missing)} of {len(rounded)} matrices"
    if len(missing) == len(rounded):
        why = "it belongs to another model" if rounded else "nothing is rounded"
        idle = (*plan.idle, f"{covers}, so it has no effect: {why}")
        return replace(plan, idle=idle), replace(inputs, imatrix=None, notes=())
    others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    note = f"{covers}; the errors of {missing[0]}{others} are weighed alike"
    return replace(plan, notes=(*plan.notes, note)), inputs
