"""Fold a rotation into a model: which steps each tensor gets, from the table of architectures.

Reads names, shapes and metadata, never weights. The network computes the same function afterwards,
so stock llama.cpp runs the result (docs/fold.md).
"""

from collections.abc import Callable

from tqgguf.errors import PlanError, UnsupportedModelError
from tqgguf.kernels import hadamard
from tqgguf.models.model import Model
from tqgguf.models.roles import layer_prefix, role
from tqgguf.rotation import channels
from tqgguf.rotation.architectures import STREAMS
from tqgguf.rotation.axis import Axis
from tqgguf.rotation.ends import EMBEDDING, HEAD, HEADS, embedding_width, tied_head
from tqgguf.rotation.readers import gain_above, reader_roles
from tqgguf.rotation.rotation import Rotation
from tqgguf.rotation.steps import BLOCK, RESIDUAL, Sides, Step
from tqgguf.rotation.stream import Stream
from tqgguf.rotation.value_heads import value_heads
from tqgguf.rotation.vectors import Energies, is_balance, product_name, size_of

_MTP = "nextn."  # multi-token prediction: llama.cpp loads these layers, and runs them only to draft
_POOLED = (1, 2, 3)  # llama.cpp's pooling types of embeddings: mean, cls, last
TENSOR_BLOCK = 128  # --rotate tensor, unless --block says otherwise


def fused(
    model: Model,
    *,
    block: int | None = None,
    seed: int = 0,
    balance: bool = True,
    energies: Energies | None = None,
) -> Rotation:
    """The rotation that leaves the network's function unchanged.

    block: the Hadamard order along the residual stream, the largest that divides it by default.
    balance: scale the FFN's channels too, which no rotation reaches; energies: of the inputs in the
    original basis (energies.py), from which the scales are chosen if given.
    Raises UnsupportedModelError with the reason and the alternative, PlanError for a bad block.
    """
    row = _row(model)
    _check_stream(model, row)
    kind: hadamard.Kind = "regular" if row.norm == "layer" else "sylvester"
    order = _order(embedding_width(model), kind, block)
    names = [*model.tensors, HEAD] if tied_head(model) else list(model.tensors)
    streams = {name: _on_stream(model, row, name) for name in names}
    heads = value_heads(model, row)
    sides = {name: streams[name] | heads.sides(name) for name in names}
    if balance:
        sides = {name: s | channels.ffn_scaled(model, row, name) for name, s in sides.items()}
    rotation = Rotation(
        mode="fused",
        kind=kind,
        block=order,
        value_block=heads.order,
        seed=seed,
        sides={name: s for name, s in sides.items() if s},
        energies=energies,
    )
    _check_shapes(model, rotation)
    return rotation


def _check_stream(model: Model, row: Stream) -> None:
    """Refuse a stream that cannot be rotated, with the reason and the alternative."""
    refusal = row.refusal or _returned(model)
    if refusal:
        other = " --rotate values (the value heads alone)," if row.values else ""
        raise UnsupportedModelError(
            f"{model.path}: the residual stream of {row.name} cannot be rotated: {refusal}; "
            f"use{other} --rotate none, or --rotate tensor for study"
        )


def _returned(model: Model) -> str:
    """Why an embedding model's stream must stay: it is the result."""
    is_embedding = model.get("{arch}.pooling_type", 0) in _POOLED
    return (
        "an embedding model returns the stream itself, and would return it rotated" * is_embedding
    )


def values(model: Model, *, balance: bool = True, energies: Energies | None = None) -> Rotation:
    """The rotation of the value heads alone (R2); the residual stream stays as it is.

    balance: scale channels too, the FFN's and those between a norm's gain and its readers;
    energies: as for `fused`.

    Raises UnsupportedModelError where something stands between values and attention output.
    """
    row = _known_row(model)
    heads = value_heads(model, row)
    if heads.order <= 1:
        raise UnsupportedModelError(
            f"{model.path}: the value heads of {row.name} cannot be rotated: "
            f"{heads.reason or 'their size is odd'}; use --rotate none"
        )
    sides = {name: heads.sides(name) for name in model.tensors}
    if balance:
        sides = {name: s | channels.scaled(model, row, name) for name, s in sides.items()}
    rotation = Rotation(
        mode="values",
        value_block=heads.order,
        sides={name: s for name, s in sides.items() if s},
        energies=energies,
    )
    _check_shapes(model, rotation)
    return rotation


def scales(model: Model, *, energies: Energies | None = None) -> Rotation:
    """The scales of channels that `values` folds in, and no rotation at all.

    Raises UnsupportedModelError for an architecture that is not known, or without such channels.
    """
    row = _known_row(model)
    sides = {name: s for name in model.tensors if (s := channels.scaled(model, row, name))}
    if not sides:
        raise UnsupportedModelError(
            f"{model.path}: {row.name} has no channels that can be scaled; use --rotate none"
        )
    rotation = Rotation(mode="scales", sides=sides, energies=energies)
    _check_shapes(model, rotation)
    return rotation


def per_tensor(model: Model, names: list[str], *, block: int | None = None) -> Rotation:
    """The rotation of each named matrix alone, along its input axis; other rows stay as they are.

    Raises PlanError where the block is no Hadamard order.
    """
    order = TENSOR_BLOCK if block is None else block
    if not hadamard.is_order(order):
        raise PlanError(f"--block {order}: a Hadamard matrix needs a power of two")
    fitting = [n for n in names if model.tensors[n].n_in % order == 0]
    return Rotation(mode="tensor", block=order, sides={n: Sides(columns=(BLOCK,)) for n in fitting})


def _check_shapes(model: Model, rotation: Rotation) -> None:
    """Refuse a header whose shapes contradict each other, before weights are read."""
    for name, sides in rotation.sides.items():
        tensor = model.tensors[name if name in model.tensors else EMBEDDING]
        for steps, axis in ((sides.columns, -1), (sides.rows, 0)):
            along = Axis(axis, (0, 0), tensor.shape)
            for step in steps:
                if (axis == 0 and len(tensor.shape) < 2) or not _fits(model, rotation, step, along):
                    raise UnsupportedModelError(
                        f"{model.path}: {name} has shape {tensor.shape}, which the fold's step "
                        f"{str(step)!r} does not fit; use --rotate none"
                    )


def _fits(model: Model, rotation: Rotation, step: Step, along: Axis) -> bool:
    if step.vector is None:
        return rotation.fits(step, along)
    return is_balance(step.vector) or size_of(model, step.vector) in along.sizes


def _row(model: Model) -> Stream:
    row = STREAMS.get(model.architecture)
    if row is None:
        raise UnsupportedModelError(
            f"{model.path}: no fold is known for architecture {model.architecture!r} "
            f"(known: {', '.join(sorted(STREAMS))}); "
            "use --rotate none, or --rotate tensor for study"
        )
    return row


def _known_row(model: Model) -> Stream:
    """The model's row, once it knows every tensor: an unknown one may stand in between."""
    row = _row(model)
    for name in model.tensors:
        if not role(name)[0].startswith(_MTP):
            _on_stream(model, row, name)
    return row


def _order(width: int, kind: hadamard.Kind, asked: int | None) -> int:
    """The order that was asked for, or the largest that divides the width."""
    largest = hadamard.largest_order(width, kind)
    order = largest if asked is None else asked
    if not hadamard.is_order(order, kind):
        need = "a power of four" if kind == "regular" else "a power of two"
        raise PlanError(f"--block {order}: this model's rotation needs {need}")
    if width % order:
        raise PlanError(
            f"--block {order} does not divide the model's width of {width}; "
            f"the largest that does is {largest}"
        )
    return order


def _on_stream(model: Model, row: Stream, name: str) -> Sides:
    """What the rotation of the residual stream does to a tensor.

    Raises UnsupportedModelError for one that the table does not know.
    """
    kind, part = role(name)
    norms = {*row.norms, row.head_norm}
    stream = (RESIDUAL,)
    cases: list[tuple[bool, Callable[[], Sides]]] = [
        (kind in row.embeddings, lambda: _embedding(row, kind)),
        (kind == row.embedding_norm, lambda: _embedding_norm(name, part)),
        (kind in norms and part == "weight", lambda: Sides(columns=(Step("ungain", name),))),
        (kind in norms, lambda: _norm_bias(model, row, name)),
        (kind in row.readers or kind in HEADS, lambda: _reader(model, row, name)),
        (kind in row.writers and part == "bias", lambda: Sides(columns=stream)),
        (kind in row.writers, lambda: Sides(rows=stream)),
        (kind in row.untouched, Sides),
    ]
    for applies, make in cases:
        if applies and kind:
            return make()
    if kind.startswith(_MTP):
        raise UnsupportedModelError(
            f"{model.path}: {name} belongs to a layer that predicts the token after the next, and "
            "reads the output head through a norm of its own, so its gain cannot be folded into "
            "the head; use --rotate values, --rotate none, or a file without that layer"
        )
    raise UnsupportedModelError(
        f"{model.path}: {name} is not in the table of {row.name}, so a fold might break it; "
        "use --rotate none"
    )


def _embedding(row: Stream, kind: str) -> Sides:
    behind = row.embedding_norm and kind == row.embeddings[0]
    return Sides(columns=(*([Step("normed", row.embedding_norm)] if behind else []), RESIDUAL))


def _embedding_norm(name: str, part: str) -> Sides:
    minus, level = Step("minus", name), Step("level", name.removesuffix(".weight"))
    return Sides(columns=(minus if part == "bias" else level,))


def _reader(model: Model, row: Stream, name: str) -> Sides:
    """Gain, then rotation; a bias stays, or takes what the norm's bias gives through the matrix."""
    kind, part = role(name)
    prefix = layer_prefix(name)
    norm = gain_above(model, row, kind, prefix)
    if part == "bias":
        takes = _gives_away(model, row, norm)
        vector = product_name(f"{prefix}{kind}.weight", f"{norm}.bias")
        return Sides(columns=(Step("plus", vector),) if takes else ())
    return Sides(columns=(*([Step("gain", f"{norm}.weight")] if norm else []), RESIDUAL))


def _norm_bias(model: Model, row: Stream, name: str) -> Sides:
    """Q^T (c/g), which is large where a gain is small; nothing where the readers take it all."""
    if _gives_away(model, row, name.removesuffix(".bias")):
        return Sides(columns=(Step("minus", name),))
    return Sides(columns=(Step("ungain", _weight_of(name)), RESIDUAL))


def _gives_away(model: Model, row: Stream, norm: str) -> bool:
    """Whether all that read this norm are single matrices with a bias, which can take W c."""
    if f"{norm}.bias" not in model.tensors:
        return False
    kind, prefix = role(f"{norm}.bias")[0], layer_prefix(f"{norm}.bias")
    if kind == row.head_norm:
        return "output.bias" in model.tensors
    return all(
        f"{prefix}{r}.bias" in model.tensors
        and len(model.tensors[f"{prefix}{r}.weight"].shape) == 2
        for r in reader_roles(model, row, norm)
    )


def _weight_of(bias: str) -> str:
    return bias.removesuffix(".bias") + ".weight"
