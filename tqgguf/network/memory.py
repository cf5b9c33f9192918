"""What a model takes in memory while llama.cpp runs it: its weights and what attention remembers.

Keys and values are kept in F16, a cell for every token of the context; a layer with a window keeps
the window and one batch; a latent attention keeps its latent vector alone; a layer of linear
attention keeps a state in F32, however long the text is. Counted as llama.cpp's caches are
(src/llama-kv-cache*.cpp, src/llama-hparams.cpp of the release inside llama-cpp-python 0.3.36).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqgguf.errors import UnsupportedModelError
from tqgguf.models import Model
from tqgguf.network.graph import Graph, read_graph

USUAL_CONTEXT = 4096  # tokens, where nobody says
_PAD, _BATCH = 256, 512  # cells come in multiples; tokens of one batch of llama.cpp
_HALF, _SINGLE = 2, 4  # bytes of a number


@dataclass(frozen=True)
class Memory:
    """Bytes at a context of so many tokens; is_most: windows, if there are any, are not counted."""

    context: int
    weights: int
    cache: int
    is_most: bool

    @property
    def total(self) -> int:
        """Both; what llama.cpp computes with comes on top."""
        return self.weights + self.cache


def memory(model: Model, context: int | None = None) -> Memory | None:
    """The memory at a context length: the usual one, or the model's where that is shorter.

    None where the header does not say what attention remembers.
    """
    try:
        graph = read_graph(model)
    except UnsupportedModelError:
        graph = None
    try:
        context = context or min(USUAL_CONTEXT, _number(model, "context_length", 0, USUAL_CONTEXT))
        n_layer = graph.n_layer if graph else _number(model, "block_count")
        if not 0 < n_layer <= len(model.tensors):  # a header that the file does not bear out
            return None
        cache = sum(_layer_bytes(model, graph, index, context) for index in range(n_layer))
    except (KeyError, IndexError, TypeError):
        return None
    return Memory(context, model.n_bytes, cache, graph is None)


def _layer_bytes(model: Model, graph: Graph | None, index: int, context: int) -> int:
    if f"blk.{index}.ssm_out.weight" in model.tensors:
        return _state_bytes(model)
    window = graph.window(index) if graph else 0
    cells = _padded(min(context, window + _BATCH) if window else context)
    return _HALF * cells * _cell_values(model, index)


def _cell_values(model: Model, index: int) -> int:
    """Numbers kept of one token by one layer; a latent attention has its values in its keys."""
    n_head = _number(model, "attention.head_count", index)
    n_head_kv = _number(model, "attention.head_count_kv", index, n_head)
    width = _number(model, "embedding_length") // max(1, n_head)
    key = _number(model, "attention.key_length", index, width)
    is_latent = model.get("{arch}.attention.key_length_mla") is not None
    value = 0 if is_latent else _number(model, "attention.value_length", index, width)
    return n_head_kv * (key + value)


def _state_bytes(model: Model) -> int:
    """A convolution's last inputs and the state of a linear attention."""
    kernel, inner, state, groups = (
        _number(model, f"ssm.{key}")
        for key in ("conv_kernel", "inner_size", "state_size", "group_count")
    )
    return _SINGLE * ((kernel - 1) * (inner + 2 * groups * state) + state * inner)


def _number(model: Model, key: str, index: int = 0, default: int | None = None) -> int:
    """A number of the header, or that of one layer; KeyError where there is none."""
    value: Any = model.get("{arch}." + key, default)
    if isinstance(value, Sequence):
        value = value[index]
    if not isinstance(value, int):
        raise KeyError(key)
    return value


def _padded(cells: int) -> int:
    return -(-cells // _PAD) * _PAD
