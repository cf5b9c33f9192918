"""Which axes of which tensors grow when a model is padded, and which metadata tells their sizes.

The FFN's inner width stands between ffn_up and ffn_down alone, so that it can grow in every
architecture: what comes out of the added rows meets zero columns. The residual stream is known from
the table of architectures, and grows where its norms are RMSNorms.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from math import sqrt
from typing import Any

from tqgguf.errors import UnsupportedModelError
from tqgguf.models.metadata import Value, encode
from tqgguf.models.model import Model, Tensor
from tqgguf.models.roles import layer_prefix, role
from tqgguf.rotation import ends
from tqgguf.rotation.architectures import STREAMS
from tqgguf.rotation.padding import Pad, Padding
from tqgguf.rotation.stream import Stream

BLOCK = 256  # weights of a super-block
_FFN = re.compile(r"ffn_(?P<side>gate|up|down)(?P<kind>|_exps|_shexp)$")
_KEYS = {
    "": "feed_forward_length",
    "_exps": "expert_feed_forward_length",
    "_shexp": "expert_shared_feed_forward_length",
}
FFNS = tuple(_KEYS)  # dense, of experts, and of experts that every token uses
# What a layer's FFN may have besides, none of which sees its inner width.
_BESIDE = re.compile(r"ffn_norm|ffn_gate_inp|ffn_post_norm|ffn_pre_norm|ffn_norm_exps")


def whole_blocks(width: int) -> int:
    """The next multiple of a super-block."""
    return -(-width // BLOCK) * BLOCK


@dataclass(frozen=True)
class _Growth:
    """Axes that grow in one tensor: its stacked matrices, and (from, to) of rows and columns."""

    n_mat: int = 1
    rows: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None
    gain: float = 1.0


def padding(model: Model, *, inner: Collection[str] = (), stream: bool = False) -> Padding:
    """The padding of a model's FFNs, of its residual stream, or of both.

    inner: of which FFNs, named by what follows ffn_down in the names of their matrices (FFNS).
    Raises UnsupportedModelError with the reason where it would not be exact or llama.cpp could not
    load it.
    """
    parts = [_inner(model, inner)] if inner else []
    if stream:
        parts.append(_stream(model))
    metadata: dict[str, Value] = {}
    growths: dict[str, list[_Growth]] = {}
    for found, keys in parts:
        metadata |= keys
        for name, growth in found.items():
            growths.setdefault(name, []).extend([growth] if growth else [])
    pads = {name: _pad(model, name, g) for name, g in growths.items()}
    return Padding({n: pad for n, pad in pads.items() if pad.before != pad.after}, metadata)


def _pad(model: Model, name: str, growths: list[_Growth]) -> Pad:
    """All growths of a tensor as one."""
    tensor = model.tensors[name if name in model.tensors else ends.EMBEDDING]
    matrices = tensor.shape[0] if len(tensor.shape) > 2 else 1
    n_mat = max([matrices, *(g.n_mat for g in growths)])
    rows, columns, gain = (tensor.n_rows // n_mat,) * 2, (tensor.n_in,) * 2, 1.0
    for growth in growths:
        rows, columns = growth.rows or rows, growth.columns or columns
        gain *= growth.gain
    return Pad((n_mat, rows[0], columns[0]), (n_mat, rows[1], columns[1]), gain)


def _inner(
    model: Model, kinds: Collection[str]
) -> tuple[dict[str, _Growth | None], dict[str, Value]]:
    """The inner widths of these FFNs, each rounded up."""
    growths: dict[str, _Growth | None] = {}
    keys: dict[str, Value] = {}
    for name, tensor in model.tensors.items():
        match = _FFN.match(role(name)[0])
        if match is None:
            _check_beside(model, name)
            continue
        width = _inner_width(model, name, match["kind"])
        wide, told = _told(model, match["kind"], width)
        counted_by = "_exps" if match["kind"] == "_shexp" and not told else match["kind"]
        if counted_by in kinds:
            growths[name] = _inner_growth(model, name, match["side"], tensor, (width, wide))
            keys |= told
    return growths, keys


def _check_beside(model: Model, name: str) -> None:
    kind, _ = role(name)
    if kind.startswith("ffn_") and not _BESIDE.match(kind):
        raise UnsupportedModelError(f"{model.path}: {name} may see the FFN's inner width")


def _inner_width(model: Model, name: str, kind: str) -> int:
    down = model.tensors.get(f"{layer_prefix(name)}ffn_down{kind}.weight")
    if down is None:
        raise UnsupportedModelError(f"{model.path}: {name} has no ffn_down{kind} beside it")
    return down.n_in


def _inner_growth(
    model: Model, name: str, side: str, tensor: Tensor, grown: tuple[int, int]
) -> _Growth | None:
    """The inner axis of one tensor; ffn_up may hold the gate's rows too, before its own."""
    width, _ = grown
    is_bias = role(name)[1] == "bias"
    if side == "down":
        return None if is_bias else _Growth(columns=grown)
    length = tensor.n_in if is_bias else tensor.shape[-2]
    if length not in (width, 2 * width) or (length != width and len(tensor.shape) > 2):
        raise UnsupportedModelError(f"{model.path}: {name} has {length} rows for {width} columns")
    if is_bias and length != width:
        raise UnsupportedModelError(f"{model.path}: {name} is the bias of two matrices in one")
    return _Growth(columns=grown) if is_bias else _Growth(length // width, rows=grown)


def _told(model: Model, kind: str, width: int) -> tuple[int, dict[str, Value]]:
    """What an inner width becomes, and the metadata that tells it, which is what the tensors have.

    Shared experts may be counted in experts' widths, and have no metadata of their own then.
    """
    keys, wide = {}, whole_blocks(width)
    names = (_KEYS[kind], _KEYS[""]) if kind == "_exps" else (_KEYS[kind],)
    for key in (f"{model.architecture}.{name}" for name in names):
        told = model.get(key)
        if told in (width, 2 * width):  # qwen counts ffn_gate and ffn_up
            keys[key] = encode(told // width * wide, model.metadata[key].type)
        elif isinstance(told, list) and width in told:
            keys[key] = encode([whole_blocks(w) if w else w for w in told])
    if keys:
        return wide, keys
    expert, count = (
        model.get(f"{{arch}}.{key}") for key in (_KEYS["_exps"], "expert_shared_count")
    )
    if kind == "_shexp" and expert and count and expert * count == width:
        return whole_blocks(expert) * count, {}
    raise UnsupportedModelError(f"{model.path}: no metadata tells the width of ffn_down{kind}")


def _stream(model: Model) -> tuple[dict[str, _Growth | None], dict[str, Value]]:
    """The residual stream, rounded up, by the table's row."""
    row = STREAMS.get(model.architecture)
    if row is None:
        raise UnsupportedModelError(
            f"{model.path}: nothing is known of the stream of {model.architecture!r}"
        )
    _check_stream(model, row)
    width = model.tensors[ends.EMBEDDING].n_in
    grown = width, whole_blocks(width)
    names = [*model.tensors, *([ends.HEAD] if ends.tied_head(model) else [])]
    growths = {name: _stream_growth(model, row, name, grown) for name in names}
    return growths, _stream_keys(model, grown)


def _check_stream(model: Model, row: Stream) -> None:
    reason = ""
    if row.norm != "rms":
        reason = "its LayerNorm takes the mean of all channels"
    elif row.refusal:
        reason = f"only one that can be rotated is, and {row.refusal}"
    elif row.no_padding:
        reason = row.no_padding
    elif model.get("{arch}.pooling_type", 0):
        reason = "an embedding model returns the stream itself"
    elif ends.EMBEDDING not in model.tensors:
        reason = f"{ends.EMBEDDING} is missing"
    if reason:
        raise UnsupportedModelError(
            f"{model.path}: the residual stream of {row.name} cannot be padded: {reason}"
        )


def _stream_growth(model: Model, row: Stream, name: str, grown: tuple[int, int]) -> _Growth | None:
    kind, part = role(name)
    if kind in {*row.norms, row.head_norm, row.embedding_norm} and kind:
        return _Growth(columns=grown, gain=sqrt(grown[0] / grown[1]))
    if kind in row.writers:
        return _Growth(columns=grown) if part == "bias" else _Growth(rows=grown)
    if kind in row.readers or kind in row.embeddings or kind in ends.HEADS:
        return None if part == "bias" else _Growth(columns=grown)
    if kind in row.untouched:
        return None
    raise UnsupportedModelError(f"{model.path}: {name} is not in the table of {row.name}")


def _stream_keys(model: Model, grown: tuple[int, int]) -> dict[str, Value]:
    """The width, the epsilon, and the sizes of heads, which no longer follow from the width."""
    width, wide = grown
    heads, epsilon = (
        model.get(f"{{arch}}.attention.{key}") for key in ("head_count", "layer_norm_rms_epsilon")
    )
    if model.get("{arch}.embedding_length") != width or not isinstance(epsilon, float):
        raise UnsupportedModelError(f"{model.path}: its width or its norms' epsilon is not told")
    values: dict[str, Any] = {
        "embedding_length": wide,
        "attention.layer_norm_rms_epsilon": epsilon * width / wide,
    }
    for key in ("attention.key_length", "attention.value_length"):
        if model.get(f"{{arch}}.{key}") is None:
            if not isinstance(heads, int) or width % heads:
                raise UnsupportedModelError(f"{model.path}: the size of its heads is not told")
            values[key] = width // heads
    return {f"{model.architecture}.{key}": encode(value) for key, value in values.items()}
