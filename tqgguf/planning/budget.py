"""Spend a budget of bytes: the types of all matrices that no option names."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tqgguf.models import Model
from tqgguf.models.roles import layer_prefix
from tqgguf.planning.allocation import (
    SLOW_TYPES,
    Errors,
    Item,
    allocate,
    known_sensitivity,
    offers,
    predicted,
)
from tqgguf.planning.matrices import is_matrix
from tqgguf.planning.plan import Plan, PlannedTensor
from tqgguf.planning.recipes import file_type


def spend(
    model: Model,
    plan: Plan,
    head: str,
    budget: int,
    sensitivity: Mapping[str, float],
    errors: Mapping[str, Errors],
) -> tuple[Plan, tuple[str, ...]]:
    """Choose the types of all matrices that no option names, within the budget."""
    free, room, barred = _to_spend_on(model, plan, budget)
    n_layer, own = count_layers(model), budget == plan.n_bytes
    items = [replace(_item(n_layer, t, head, sensitivity, errors), without=barred) for t in free]
    types = allocate(items, room)
    tensors = tuple(
        replace(t, type=types[t.name], reason=t.reason if own else "") if t.name in types else t
        for t in plan.tensors
    )
    allocated = replace(plan, tensors=tensors)
    name = plan.recipe.name if own else f"TQ-{allocated.bpw:.2f}"
    named = replace(plan.recipe, name=name, file_type=file_type(_most_common(tensors)))
    return replace(allocated, recipe=named), (_note(items, types, is_measured=bool(sensitivity)),)


def _note(items: Sequence[Item], types: Mapping[str, str], *, is_measured: bool) -> str:
    """What types were chosen by; how sensitive other models were in a role predicts nothing."""
    if not is_measured:
        return (
            "types chosen by the sensitivity known of each role; "
            "a predicted KL divergence takes --effort best, which measures it"
        )
    loss = f"{predicted(items, types):.4f} without error feedback"
    return f"types chosen by the sensitivity measured; predicted KL divergence {loss}"


def types_to_spend_on(model: Model, plan: Plan, budget: int) -> dict[str, list[str]]:
    """The types that `spend` chooses from for each matrix that no option names."""
    free, room, barred = _to_spend_on(model, plan, budget)
    items = [Item(t.name, t.size, t.shape[-1], 1.0, without=barred) for t in free]
    return {t.name: types for t, types in zip(free, offers(items, room), strict=True)}


def _to_spend_on(
    model: Model, plan: Plan, budget: int
) -> tuple[list[PlannedTensor], int, Sequence[str]]:
    """The matrices that no option names, the bytes they may take, what they must not become.

    In the recipe's own bytes they get no slower types than its own.
    """
    free = [t for t in plan.tensors if is_matrix(model.tensors[t.source]) and not t.named]
    fixed = plan.n_bytes - sum(t.n_bytes for t in free)
    own = budget == plan.n_bytes
    barred = SLOW_TYPES if own and plan.recipe.matrix not in SLOW_TYPES else ()
    return free, budget - fixed, barred


def count_layers(model: Model) -> int:
    """How many layers the names of the tensors tell of."""
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
    found = errors.get(t.name, Errors())
    known = known_sensitivity(t.name, n_layer, head=head, of_outputs=found.of_outputs)
    return Item(t.name, t.size, t.shape[-1], sensitivity.get(t.name, known), found.by_type)
