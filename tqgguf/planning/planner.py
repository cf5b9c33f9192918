"""Decide what becomes of every tensor, from names, shapes and metadata alone.

`make_plan` is pure: the same model header and options give the same plan, and no weight is read.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from tqgguf.errors import PlanError
from tqgguf.formats import FORMATS, is_float
from tqgguf.models import Model, Tensor
from tqgguf.models.roles import layer_index, role
from tqgguf.planning.allocation import Errors
from tqgguf.planning.budget import count_layers, spend
from tqgguf.planning.matrices import is_matrix
from tqgguf.planning.notes import idle_options, notes_of
from tqgguf.planning.plan import Options, Plan, PlannedTensor
from tqgguf.planning.recipes import Recipe, recipe
from tqgguf.planning.tensor_types import named_types, planned_tensor, with_scales
from tqgguf.rotation import ends, folding
from tqgguf.rotation.energies import Energies
from tqgguf.rotation.padding import read_padding, unpadded
from tqgguf.rotation.recorded import read_rotation
from tqgguf.rotation.rotation import NO_ROTATION, Rotation

ROTATIONS = ("fused", "auto", "tensor", "none", "values", "scales")


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
    outline = _Outline(model, options, _rotation(model, options, energies))
    plan = outline.plan(chosen)
    said: tuple[str, ...] = ()
    if budget is not None:
        plan, said = spend(model, plan, outline.head, budget, sensitivity or {}, errors or {})
    plan = replace(plan, tensors=outline.with_scales(plan.tensors))
    plan = replace(plan, notes=(*notes_of(model, plan), *said), idle=tuple(outline.idle(plan)))
    _check(model, plan, options)
    return plan


@dataclass(frozen=True)
class _Outline:
    """What the output holds before types are known: its tensors and what each is made from."""

    model: Model
    options: Options
    rotation: Rotation

    @cached_property
    def sources(self) -> dict[str, Tensor]:
        """The source of every tensor of the output by its name there; an untied head has one."""
        sources = dict(self.model.tensors)
        if self.rotation.mode == "fused" and ends.tied_head(self.model):
            sources[ends.HEAD] = sources[ends.EMBEDDING]
        return sources

    @property
    def head(self) -> str:
        """The tensor that is the output head: the embedding where they are tied."""
        return ends.HEAD if ends.HEAD in self.sources else ends.EMBEDDING

    def plan(self, chosen: Recipe) -> Plan:
        """Types by the recipe, or by its kin for rows that it mostly does not fit."""
        weights = sum(t.size for t in unpadded(self.model).tensors.values())
        quick = self.options.effort == "fast"
        plan = Plan(chosen, self.rotation, self._tensors(chosen), weights, quick=quick)
        if chosen.ragged and plan.mostly_ragged:
            pairs = zip(plan.tensors, self._tensors(chosen.ragged), strict=True)
            return replace(plan, tensors=tuple(replace(t, type=kin.type) for t, kin in pairs))
        return plan

    def _tensors(self, chosen: Recipe) -> tuple[PlannedTensor, ...]:
        pads, n_layer = read_padding(self.model).pads, count_layers(self.model)
        less = self._record_in_layers(chosen)

        def planned(name: str, source: Tensor) -> PlannedTensor:
            of_layer = chosen.of_layer(layer_index(name), n_layer, less=less)
            made = planned_tensor(source, name, of_layer, self.options, self.rotation, self.head)
            pad = pads.get(source.name)
            return replace(made, pad=pad) if pad else made

        return tuple(planned(*item) for item in self.sources.items())

    def _record_in_layers(self, chosen: Recipe) -> float:
        """The rotation's record, in bytes that a layer takes more for not being an inner one."""
        tensors = self.model.tensors.values()
        added = sum(t.size * chosen.outer_bits(role(t.name)[0]) for t in tensors) / 8
        layers = count_layers(self.model)
        return self.rotation.record_bytes(self.model) * layers / added if added else 0.0

    def with_scales(self, tensors: tuple[PlannedTensor, ...]) -> tuple[PlannedTensor, ...]:
        """The tensors, those of a type that needs scales with them or of another type."""
        return tuple(with_scales(t, self.model, self.sources.keys()) for t in tensors)

    def idle(self, plan: Plan) -> Iterator[str]:
        """What to say of options that change nothing."""
        yield from named_types(self.options).idle(self.sources)
        yield from idle_options(self.options, self.rotation, rounds=plan.rounded_weights > 0)


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
