"""Which matrices read a norm, and which norm a matrix reads."""

from tqgguf.models.model import Model, Tensor
from tqgguf.models.roles import layer_prefix, role
from tqgguf.rotation.architectures import STREAMS
from tqgguf.rotation.ends import HEADS
from tqgguf.rotation.stream import Stream


def norm_above(model: Model, name: str) -> str:
    """The norm that has a gain and feeds a matrix, `blk.3.attn_norm` say; "" if none is known."""
    row, kind = STREAMS.get(model.architecture), role(name)[0]
    if row is None or not (kind == "output" or kind in row.readers):
        return ""
    return gain_above(model, row, kind, layer_prefix(name))


def readers(model: Model, norm: str) -> list[Tensor]:
    """The matrices that read a layer's norm, `blk.3.attn_norm` say; none where none is known."""
    row, prefix = STREAMS.get(model.architecture), layer_prefix(f"{norm}.weight")
    names = reader_roles(model, row, norm) if row else []
    return [model.tensors[f"{prefix}{name}.weight"] for name in names]


def gain_above(model: Model, row: Stream, kind: str, prefix: str) -> str:
    """The norm whose output a matrix reads, `blk.3.attn_norm` say; empty if it has no gain."""
    norms = [row.head_norm] if kind in HEADS else [n for n, r in row.norms.items() if kind in r]
    return next((prefix + n for n in reversed(norms) if f"{prefix}{n}.weight" in model.tensors), "")


def reader_roles(model: Model, row: Stream, norm: str) -> list[str]:
    """The roles of the matrices that read a layer's norm, `blk.3.attn_norm` say."""
    kind, prefix = role(f"{norm}.weight")[0], layer_prefix(f"{norm}.weight")
    present = [r for r in row.norms.get(kind, ()) if f"{prefix}{r}.weight" in model.tensors]
    return [r for r in present if gain_above(model, row, r, prefix) == norm]
