"""Which channels are scaled, and what that does to each tensor; the factors are balance.py's."""

from tqgguf.models.model import Model
from tqgguf.models.roles import layer_prefix, role
from tqgguf.rotation.readers import gain_above, reader_roles
from tqgguf.rotation.steps import Sides, Step
from tqgguf.rotation.stream import Stream
from tqgguf.rotation.vectors import BALANCE, NORM_BALANCE


def scaled(model: Model, row: Stream, name: str) -> Sides:
    """All that scaling channels does to a tensor."""
    return ffn_scaled(model, row, name) | norm_scaled(model, row, name)


def ffn_scaled(model: Model, row: Stream, name: str) -> Sides:
    """The balancing of a gated FFN's channels: up gains what down loses, for each expert."""
    kind, part = role(name)
    matrix, _, group = kind.removeprefix("ffn_").partition("_")  # "", "exps" or "shexp"
    if not (row.balanced and kind.startswith("ffn_") and matrix in ("up", "down")):
        return Sides()
    ending = f"_{group}" if group else ""
    prefix = layer_prefix(name)
    names = [f"{prefix}ffn_{m}{ending}.weight" for m in ("gate", "up", "down")]
    biased = group and f"{prefix}ffn_up{ending}.bias" in model.tensors
    if biased or not all(n in model.tensors for n in names):
        return Sides()
    gate, up, down = (model.tensors[n].shape for n in names)
    if len(up) < 2 or gate != up or (*down[:-2], down[-1]) != up[:-1]:
        return Sides()
    vector = f"{prefix}{BALANCE}{ending}"
    if matrix == "down":
        return Sides(columns=(Step("ungain", vector),)) if part == "weight" else Sides()
    gain = (Step("gain", vector),)
    return Sides(columns=gain) if part == "bias" else Sides(rows=gain)


def norm_scaled(model: Model, row: Stream, name: str) -> Sides:
    """The balancing of channels between a norm's gain, its bias too, and all that read it."""
    (kind, part), prefix = role(name), layer_prefix(name)
    reads = kind in row.readers
    norm = gain_above(model, row, kind, prefix) if reads else prefix + kind
    gain = model.tensors.get(f"{norm}.weight")
    readers = reader_roles(model, row, norm) if gain else []
    widths = {model.tensors[f"{prefix}{reader}.weight"].n_in for reader in readers}
    if gain is None or widths != {gain.size} or (reads and part == "bias"):
        return Sides()
    vector = "+".join((f"{prefix}{NORM_BALANCE}", *readers))
    return Sides(columns=(Step("gain" if reads else "ungain", vector),))
