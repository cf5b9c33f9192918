"""Fold a rotation into a model: which steps each tensor gets, from the table of architectures.

Reads names, shapes and metadata, never weights. The network computes the same function afterwards,
so stock llama.cpp runs the result (docs: README, "How the fold works").
"""

from collections.abc import Callable
from dataclasses import replace

from tqgguf.errors import PlanError, UnsupportedModelError
from tqgguf.kernels import hadamard
from tqgguf.models.architectures import ARCHITECTURES, Architecture, layer_prefix, role
from tqgguf.models.model import Model
from tqgguf.models.rotation import Rotation, Sides

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
TENSOR_BLOCK = 128  # --rotate tensor, unless --block says otherwise


def tied_head(model: Model) -> bool:
    """Whether the output head is the token embedding, so that a fold must untie it."""
    return HEAD not in model.tensors and EMBEDDING in model.tensors


def fused(model: Model, *, block: int | None = None, seed: int = 0) -> Rotation:
    """The rotation that leaves the network's function unchanged.

    block: the Hadamard order along the residual stream, the largest that divides it by default.
    Raises UnsupportedModelError with the reason and the alternative, PlanError for a bad block.
    """
    row = _architecture(model)
    width = _embedding_width(model)
    kind: hadamard.Kind = "regular" if row.norm == "layer" else "sylvester"
    order = hadamard.largest_order(width, kind) if block is None else block
    _check_order(order, width, kind)
    names = [*model.tensors, HEAD] if tied_head(model) else list(model.tensors)
    value_order = _value_order(model) if row.values else 0
    sides = {name: _sides(model, row, name, rotate_values=value_order > 1) for name in names}
    return Rotation(
        mode="fused",
        kind=kind,
        block=order,
        value_block=value_order,
        seed=seed,
        sides={name: s for name, s in sides.items() if s},
    )


def per_tensor(model: Model, names: list[str], *, block: int | None = None) -> Rotation:
    """The rotation of each named matrix alone, along its input axis; other rows stay as they are.

    Raises PlanError where the block is no Hadamard order.
    """
    order = TENSOR_BLOCK if block is None else block
    if not hadamard.is_order(order):
        raise PlanError(f"--block {order}: a Hadamard matrix needs a power of two")
    fitting = [n for n in names if model.tensors[n].n_in % order == 0]
    return Rotation(
        mode="tensor", block=order, sides={n: Sides(columns=("block",)) for n in fitting}
    )


def _architecture(model: Model) -> Architecture:
    row = ARCHITECTURES.get(model.architecture)
    cure = "use --rotate none, or --rotate tensor for study"
    if row is None:
        raise UnsupportedModelError(
            f"{model.path}: no fold is known for architecture {model.architecture!r} "
            f"(known: {', '.join(sorted(ARCHITECTURES))}); {cure}"
        )
    if row.refusal:
        raise UnsupportedModelError(
            f"{model.path}: {row.name} cannot be folded: {row.refusal}; {cure}"
        )
    return row


def _embedding_width(model: Model) -> int:
    if EMBEDDING not in model.tensors:
        raise UnsupportedModelError(f"{model.path}: {EMBEDDING} is missing; use --rotate none")
    return model.tensors[EMBEDDING].n_in


def _check_order(order: int, width: int, kind: hadamard.Kind) -> None:
    if not hadamard.is_order(order, kind):
        need = "a power of four" if kind == "regular" else "a power of two"
        raise PlanError(f"--block {order}: this model's rotation needs {need}")
    if width % order:
        largest = hadamard.largest_order(width, kind)
        raise PlanError(
            f"--block {order} does not divide the model's width of {width}; "
            f"the largest that does is {largest}"
        )


def _value_order(model: Model) -> int:
    """The Hadamard order within one value head."""
    heads = model.get("{arch}.attention.head_count")
    heads = max(heads) if isinstance(heads, list) else heads
    size = model.get("{arch}.attention.value_length")
    if size is None and not heads:
        raise UnsupportedModelError(
            f"{model.path}: {model.architecture}.attention.head_count is missing"
        )
    return hadamard.largest_order(size or _embedding_width(model) // heads)


def _sides(model: Model, row: Architecture, name: str, *, rotate_values: bool) -> Sides:
    """The steps of one tensor."""
    kind, part = role(name)
    sides = _on_stream(row, name, kind, part)
    if sides is None:
        raise UnsupportedModelError(
            f"{model.path}: {name} is not in the table of {row.name}, so a fold might break it; "
            "use --rotate none"
        )
    if not (rotate_values and row.values):
        return sides
    value, output = row.values
    if kind == value and part == "bias":
        return replace(sides, columns=("value", *sides.columns))
    if kind == value:
        return replace(sides, rows=("value", *sides.rows))
    if kind == output and part == "weight":
        return replace(sides, columns=("value", *sides.columns))
    return sides


def _on_stream(row: Architecture, name: str, kind: str, part: str) -> Sides | None:
    """What the rotation of the residual stream does to a tensor; None if it is unknown."""
    norms = {*row.norms, row.head_norm}
    norm_of_reader = row.readers | {"output": row.head_norm}
    cases: list[tuple[bool, Callable[[], Sides]]] = [
        (kind in row.embeddings, lambda: Sides(columns=("residual",))),
        (kind in norms and part == "weight", lambda: Sides(columns=(f"ungain:{name}",))),
        (kind in norms, lambda: Sides(columns=(f"ungain:{_weight_of(name)}", "residual"))),
        (kind in norm_of_reader and part == "bias", Sides),
        (kind in norm_of_reader, lambda: _reader(name, norm_of_reader[kind])),
        (kind in row.writers and part == "bias", lambda: Sides(columns=("residual",))),
        (kind in row.writers, lambda: Sides(rows=("residual",))),
        (kind in row.untouched, Sides),
    ]
    return next((make() for applies, make in cases if applies), None)


def _reader(name: str, norm: str) -> Sides:
    return Sides(columns=(f"gain:{layer_prefix(name)}{norm}.weight", "residual"))


def _weight_of(bias: str) -> str:
    return bias.removesuffix(".bias") + ".weight"
