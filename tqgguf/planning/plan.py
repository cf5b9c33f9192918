"""Decide what becomes of every tensor, from names, shapes and metadata alone.

`make_plan` is pure: the same model header and options give the same plan, and no weight is read.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

from tqgguf.errors import PlanError, UnsupportedModelError
from tqgguf.formats import FORMATS, is_float
from tqgguf.models import INTEGERS, Model, Tensor, scale_name, stored_bytes
from tqgguf.models.roles import layer_index, layer_prefix, role
from tqgguf.planning.allocation import (
    SLOW_TYPES,
    Errors,
    Item,
    allocate,
    default_sensitivity,
    predicted,
)
from tqgguf.planning.matrices import NamedTypes, is_matrix, may_be_quantized, needs_f32
from tqgguf.planning.recipes import Recipe, file_type, fitting, recipe
from tqgguf.planning.scales import may_be_scaled
from tqgguf.rotation import ends, folding
from tqgguf.rotation.energies import Energies
from tqgguf.rotation.padding import Pad, read_padding, unpadded
from tqgguf.rotation.recorded import read_rotation
from tqgguf.rotation.rotation import NO_ROTATION, Rotation
from tqgguf.rotation.steps import Sides
from tqgguf.rotation.vectors import BALANCE, NORM_BALANCE

ROTATIONS = ("fused", "auto", "tensor", "none", "values", "scales")


_RELEASED = ("MXFP4", "NVFP4")  # models are trained and released in them: stored as they are
_UNSCALED = "IQ4_NL"  # in place of NVFP4, of as many bits


@dataclass(frozen=True)
class Options:
    """What a user may ask of a plan: the command line's options of the same names are its fields.

    block: a Hadamard order, None for the largest. tensor_type: (regular expression, type) pairs,
    the first match wins. target_size: bytes of the file. effort: see planning/inputs.py, None for
    good, or best where there is a text to calibrate on.
    """

    type: str = "tq-q4"
    rotate: str = "auto"
    block: int | None = None
    seed: int = 0
    balance: bool = True
    tensor_type: Sequence[tuple[str, str]] = ()
    output_type: str | None = None
    token_embedding_type: str | None = None
    target_bpw: float | None = None
    target_size: int | None = None
    pad: str = "auto"
    effort: str | None = None
    calibrate: Path | None = None
    calibrate_tokens: int | None = None
    imatrix: Path | None = None
    strict: bool = False
    allow_requantize: bool = False


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output: what it is made from, its type, and why if that is a fallback.

    named: an option says its type, and no recipe or budget. is_scaled: beside it stands a scale for
    each of its matrices.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    source_type: str
    type: str
    sides: Sides = field(default_factory=Sides)
    reason: str = ""
    named: bool = False
    pad: Pad | None = None  # how its source grows
    is_scaled: bool = False

    @property
    def size(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Bytes in the output file."""
        return stored_bytes(self.type, self.size)

    @property
    def is_copy(self) -> bool:
        """Whether its bytes are those of the source."""
        is_same = self.type == self.source_type and not is_float(self.type)
        return is_same and self.pad is None and not self.sides

    @property
    def scales(self) -> "tuple[PlannedTensor, ...]":
        """The tensor of its matrices' scales, if it has one."""
        if not self.is_scaled:
            return ()
        shape = (prod(self.shape[:-2]),)
        return (PlannedTensor(scale_name(self.name), self.source, shape, "F32", "F32"),)

    @property
    def bpw(self) -> float:
        """Bits per weight."""
        return 8 * self.n_bytes / self.size


@dataclass(frozen=True)
class Plan:
    """The whole decision. Sizes are of tensor data; bpw is per weight of the source model."""

    recipe: Recipe
    rotation: Rotation
    tensors: tuple[PlannedTensor, ...]
    source_weights: int
    notes: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()  # what to say of options that change nothing
    quick: bool = False  # whether types with an encoder of few candidates take that
    measured_on: str = ""  # the text that told of the inputs, for the record

    @property
    def stored(self) -> "tuple[PlannedTensor, ...]":
        """All that the file holds: the tensors, each with its matrices' scales before it."""
        return tuple(s for t in self.tensors for s in (*t.scales, t))

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.n_bytes for t in self.stored)

    @property
    def bpw(self) -> float:
        """Bits per weight of the source model, so that an untied head counts as a cost."""
        return 8 * self.n_bytes / self.source_weights

    @property
    def matrix_types(self) -> dict[str, str]:
        """The types of all tensors of more than one axis, by name; tables of integers are none."""
        return {t.name: t.type for t in self.tensors if len(t.shape) > 1 and t.type in FORMATS}

    @property
    def rounded_weights(self) -> int:
        """How many weights of these become a quantized type."""
        matrices = self.matrix_types
        return sum(t.size for t in self.tensors if not is_float(matrices.get(t.name, "F32")))

    @property
    def fallbacks(self) -> tuple[PlannedTensor, ...]:
        """Tensors that did not get the type they were meant to have."""
        return tuple(t for t in self.tensors if t.reason)

    @property
    def mostly_ragged(self) -> bool:
        """Whether most weights that get the recipe's types are in rows that these do not fit."""
        matrices = sum(t.size for t in self.tensors if len(t.shape) > 1 and not t.named)
        ragged = sum(t.size for t in self.fallbacks if not t.named)
        return self.recipe.ragged is not None and 2 * ragged > matrices


def check_tensors(model: Model) -> None:
    """Refuse a file that is none of a model. Raises PlanError."""
    if not model.tensors:
        raise PlanError(
            f"{model.path}: holds no tensors; expected a model, not its vocabulary alone"
        )


def make_plan(
    model: Model,
    options: Options,
    *,
    budget: int | None = None,
    sensitivity: Mapping[str, float] | None = None,
    energies: Energies | None = None,
    errors: Mapping[str, Errors] | None = None,
) -> Plan:
    """Plan the quantization of a model.

    budget: bytes of all tensors, for which to choose their types by sensitivity: divergence per
    relative squared error of each (None: what is known of their roles), and by the errors of their
    types (None: those of Gaussian weights). energies: of the inputs in the original basis, from
    which a fold chooses the scales of channels (None: from the weights).
    Raises PlanError for options that contradict the model and for a file without tensors,
    UnsupportedModelError where the asked rotation cannot be folded.
    """
    chosen = recipe(options.type)
    check_tensors(model)
    if read_rotation(model).mode != "none" and options.rotate != "none":
        raise PlanError(f"{model.path}: already rotated by tqgguf; use --rotate none")
    rotation = _rotation(model, options, energies)
    sources = {name: name for name in model.tensors}
    if rotation.mode == "fused" and ends.tied_head(model):
        sources[ends.HEAD] = ends.EMBEDDING
    pads = read_padding(model).pads
    head = ends.HEAD if ends.HEAD in sources else ends.EMBEDDING  # tied: both in one

    n_layer = _count_layers(model)

    def planned(by: Recipe) -> tuple[PlannedTensor, ...]:
        return tuple(
            replace(
                _plan_tensor(
                    *(model.tensors[source], name, by.of_layer(layer_index(name), n_layer)),
                    *(options, rotation, head),
                ),
                pad=pads.get(source),
            )
            for name, source in sources.items()
        )

    source_weights = sum(t.size for t in unpadded(model).tensors.values())
    plan = Plan(chosen, rotation, planned(chosen), source_weights, quick=options.effort == "fast")
    if chosen.ragged and plan.mostly_ragged:
        pairs = zip(plan.tensors, planned(chosen.ragged), strict=True)
        plan = replace(plan, tensors=tuple(replace(t, type=other.type) for t, other in pairs))
    said: tuple[str, ...] = ()
    if budget is not None:
        plan, said = _spend(model, plan, head, budget, sensitivity or {}, errors or {})
    names = model.tensors.keys() | sources.keys()
    plan = replace(plan, tensors=tuple(_scaled(t, model, names) for t in plan.tensors))
    idle = tuple(_named_types(options).idle({n: model.tensors[s] for n, s in sources.items()}))
    plan = replace(
        plan, notes=(*_notes(model, plan), *said), idle=(*idle, *_idle(options, plan.rotation))
    )
    _check(model, plan, options)
    return plan


def _spend(
    model: Model,
    plan: Plan,
    head: str,
    budget: int,
    sensitivity: Mapping[str, float],
    errors: Mapping[str, Errors],
) -> tuple[Plan, tuple[str, ...]]:
    """Choose the types of all matrices that no option names, within the budget."""
    sources = model.tensors
    free = [t for t in plan.tensors if is_matrix(sources[t.source]) and not t.named]
    n_layer = _count_layers(model)
    own = budget == plan.n_bytes  # the recipe's own bytes: no slower types than its own
    slow = () if not own or plan.recipe.matrix in SLOW_TYPES else SLOW_TYPES
    items = [replace(_item(n_layer, t, head, sensitivity, errors), without=slow) for t in free]
    fixed = plan.n_bytes - sum(t.n_bytes for t in free)
    types = allocate(items, budget - fixed)
    tensors = tuple(
        replace(t, type=types[t.name], reason=t.reason if own else "") if t.name in types else t
        for t in plan.tensors
    )
    allocated = replace(plan, tensors=tensors)
    name = plan.recipe.name if own else f"TQ-{allocated.bpw:.2f}"
    named = replace(plan.recipe, name=name, file_type=file_type(_most_common(tensors)))
    source = "measured" if sensitivity else "known of each role"
    return (
        replace(allocated, recipe=named),
        (
            f"types chosen by the sensitivity {source}; predicted KL divergence "
            f"{predicted(items, types):.4f} without error feedback",
        ),
    )


def _count_layers(model: Model) -> int:
    return len({layer_prefix(name) for name in model.tensors} - {""})


def _most_common(tensors: Sequence[PlannedTensor]) -> str:
    """The type that holds the most weights."""
    count: Counter[str] = Counter()
    for t in tensors:
        count[t.type] += t.size
    return count.most_common(1)[0][0]


def _item(
    n_layer: int,
    t: PlannedTensor,
    head: str,
    sensitivity: Mapping[str, float],
    errors: Mapping[str, Errors],
) -> Item:
    kind = "output" if t.name == head else role(t.name)[0]
    layer = layer_index(t.name)
    found = errors.get(t.name, Errors())
    known = default_sensitivity(kind, layer, n_layer, of_outputs=found.of_outputs)
    return Item(t.name, t.size, t.shape[-1], sensitivity.get(t.name, known), found.by_type)


def _rotation(model: Model, options: Options, energies: Energies | None) -> Rotation:
    if options.rotate == "fused":
        return folding.fused(
            model,
            block=options.block,
            seed=options.seed,
            balance=options.balance,
            energies=energies,
        )
    if options.rotate == "values":
        return folding.values(model, balance=options.balance, energies=energies)
    if options.rotate == "scales":
        if not options.balance:
            raise PlanError("--rotate scales and --no-balance contradict each other")
        return folding.scales(model, energies=energies)
    if options.rotate == "tensor":
        names = [t.name for t in model.tensors.values() if is_matrix(t)]
        return folding.per_tensor(model, names, block=options.block)
    if options.rotate == "none":
        return NO_ROTATION
    raise PlanError(f"--rotate {options.rotate} is unknown; known: {', '.join(ROTATIONS)}")


def _plan_tensor(
    source: Tensor, name: str, chosen: Recipe, options: Options, rotation: Rotation, head: str
) -> PlannedTensor:
    named = _named_type(source, name, options, head)
    sides = rotation.sides.get(name, Sides())
    if source.type in _RELEASED and sides and not options.allow_requantize:
        raise UnsupportedModelError(
            f"{name}: a rotation would round its {source.type} weights again; use --rotate none, "
            "or accept the loss with --allow-requantize"
        )
    if named is None and source.type in _RELEASED and not sides:
        type, reason = source.type, ""
    elif named is None and is_matrix(source):
        kind = "output" if name == head else role(name)[0]
        type, reason = fitting(chosen.type_of(kind), source.n_in)
    else:
        wanted = named or _kept_type(source, chosen)
        type, reason = fitting(wanted, source.n_in) if wanted in FORMATS else (wanted, "")
    is_named = named is not None
    return PlannedTensor(
        name, source.name, source.shape, source.type, type, sides, reason, is_named
    )


def _scaled(planned: PlannedTensor, model: Model, names: Collection[str]) -> PlannedTensor:
    """A tensor of a type that needs scales beside it: with them, or of the next best type."""
    if planned.type not in FORMATS or not FORMATS[planned.type].is_scaled:
        return planned
    if planned.is_copy and model.tensors[planned.source].scales is None:
        return planned
    if may_be_scaled(model.architecture, planned.name, names):
        return replace(planned, is_scaled=True)
    fact = f"no scale beside {planned.name} is used in llama.cpp's graph of {model.architecture}"
    return replace(planned, type=_UNSCALED, reason=fact)


def _named_type(source: Tensor, name: str, options: Options, head: str) -> str | None:
    """The type that an option gives to a tensor, before its row length is looked at."""
    if not may_be_quantized(source):
        return None
    return _named_types(options).type_of(name, tied=head != ends.HEAD)


def _named_types(options: Options) -> NamedTypes:
    return NamedTypes(options.tensor_type, options.output_type, options.token_embedding_type)


def _kept_type(source: Tensor, chosen: Recipe) -> str:
    """The type of what is no matrix: as it is, or as llama.cpp needs it."""
    if source.type in INTEGERS:
        return source.type
    if needs_f32(source) or source.type == "F64":
        return "F32"
    decoded = is_float(chosen.matrix) and not is_float(source.type)
    return chosen.matrix if decoded else source.type


def _check(model: Model, plan: Plan, options: Options) -> None:
    for t in plan.tensors:
        if t.type not in FORMATS and t.type != t.source_type:
            raise PlanError(f"{t.name}: tqgguf cannot write {t.type}")
        decoded = t.type != t.source_type and not is_float(t.source_type)
        if decoded and not options.allow_requantize:
            raise PlanError(
                f"{model.path}: {t.name} is already {t.source_type}; quantize the F16, BF16 or F32 "
                "model, or accept the loss with --allow-requantize"
            )
    if options.strict and plan.idle:
        raise PlanError(f"{plan.idle[0]}; --strict forbids that")
    if options.strict and plan.fallbacks:
        first = plan.fallbacks[0]
        raise PlanError(
            f"{first.name}: {first.reason}; it would be {first.type}, which --strict forbids "
            f"({len(plan.fallbacks)} such tensors)"
        )


def _idle(options: Options, rotation: Rotation) -> Iterator[str]:
    """What to say of options about the rotation that this one has no use for."""
    given = {
        "--block": options.block is not None and rotation.mode not in ("fused", "tensor"),
        "--seed": options.seed and (rotation.mode != "fused" or rotation.kind == "regular"),
        "--no-balance": not options.balance and rotation.mode not in ("fused", "values", "scales"),
    }
    is_budget = options.target_bpw is not None or options.target_size is not None
    if is_budget and options.type != Options.type:
        yield f"--type {options.type} has no effect on matrices whose types a budget chooses"
    kind = f" in {rotation.kind} blocks" if rotation.mode == "fused" else ""
    for option in (name for name, is_idle in given.items() if is_idle):
        yield f"{option} has no effect on --rotate {rotation.mode}{kind}"


def _rotation_notes(rotation: Rotation, tensors: Sequence[PlannedTensor]) -> Iterator[str]:
    """What was rotated and how far it mixes."""
    within = f"within value heads in blocks of {rotation.value_block}"
    if rotation.mode == "tensor":
        yield "stock llama.cpp cannot run --rotate tensor: it would not rotate activations"
    elif rotation.mode == "scales":
        yield "nothing is rotated, channels are scaled"
    elif rotation.mode == "values":
        yield f"rotated {within} alone; the residual stream is untouched"
    elif rotation.mode == "fused":
        width = next(t.shape[-1] for t in tensors if t.name == ends.EMBEDDING)
        order, kind = rotation.block, rotation.kind
        count = f", {width // order} of them" if width > order else ""
        yield f"rotated along the residual stream of {width} in {kind} blocks of {order}{count}"
        yield f"rotated {within}" if rotation.value_block > 1 else "value heads are untouched"
    steps = " ".join(step.vector or "" for t in tensors for step in t.sides.columns)
    if BALANCE in steps:
        yield "the FFN's channels are balanced between ffn_up and ffn_down"
    if NORM_BALANCE in steps:
        yield "channels are balanced between the norms' gains and the matrices that read them"


def _padding_notes(model: Model) -> Iterator[str]:
    """Which widths were padded, and what that costs."""
    padding = read_padding(model)
    for what, name in (("the stream", ends.EMBEDDING), ("FFNs", "ffn_down")):
        found = (p for n, p in padding.pads.items() if n.endswith(name) or f".{name}" in n)
        widths = {(p.before[2], p.after[2]) for p in found} - {(0, 0)}
        for old, new in sorted(w for w in widths if w[0] < w[1]):
            yield f"rows of {what} padded from {old:,} to {new:,}, {new / old - 1:.1%} more"


def _notes(model: Model, plan: Plan) -> tuple[str, ...]:
    notes = list(_padding_notes(model))
    head = next((t for t in plan.tensors if t.name == ends.HEAD), None)
    if head and head.source != head.name:
        notes.append(
            f"untied: the fold needs an output head of its own, {head.n_bytes / 1e6:.1f} MB more"
        )
    notes.extend(_rotation_notes(plan.rotation, plan.tensors))
    return tuple(notes)
