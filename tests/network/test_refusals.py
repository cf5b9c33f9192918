"""What the forward pass cannot compute is one clear line, never a traceback or another function."""

from dataclasses import replace

import numpy as np
import pytest

from tests.network.graphs import write_graph
from tqgguf.errors import UnsupportedModelError
from tqgguf.models import Model, open_model
from tqgguf.models.metadata import encode
from tqgguf.network import forward

TOKENS = np.array([[5, 900, 17]], np.int32)


def with_key(name: str, value: object):
    def change(model: Model) -> Model:
        return replace(model, metadata={**model.metadata, name: encode(value)})

    return change


def without_tensor(name: str):
    def change(model: Model) -> Model:
        return replace(model, tensors={n: t for n, t in model.tensors.items() if n != name})

    return change


def renamed(name: str, other: str):
    def change(model: Model) -> Model:
        tensors = {other if n == name else n: t for n, t in model.tensors.items()}
        return replace(model, tensors=tensors)

    return change


def swapped(model: Model) -> Model:
    a, b = "blk.1.ffn_up.weight", "blk.1.attn_q.weight"
    return replace(model, tensors={**model.tensors, a: model.tensors[b], b: model.tensors[a]})


HEADS = "llama.attention.head_count"
REFUSED = {
    "heads of each layer": (
        with_key(HEADS, [4, 4]),
        "metadata has more than one number as llama.attention.head_count",
    ),
    "no heads": (
        with_key(HEADS, 0),
        "2 layers of 0 heads of 16, 2 of them with keys, make no sense",
    ),
    "a text for a number": (with_key("llama.rope.freq_base", "10k"), "'10k', expected a number"),
    "heads that share no keys evenly": (with_key(HEADS, 3), "2 of them with keys, make no sense"),
    "too many layers": (with_key("llama.block_count", 1 << 30), "1073741824 layers"),
    "a negative base": (with_key("llama.rope.freq_base", -2.0), "rope.freq_base is -2"),
    "an unknown scaling": (
        with_key("llama.rope.scaling.type", "dynamic"),
        "no forward pass for rope scaling 'dynamic'",
    ),
    "an unknown tensor": (
        renamed("blk.0.ffn_up.weight", "blk.0.ffn_up.scale"),
        r"no forward pass with blk\.0\.ffn_up\.scale, which is not known to be part of llama",
    ),
    "a missing tensor": (
        without_tensor("blk.1.attn_output.weight"),
        r"blk\.1: its tensors do not fit the graph of llama \(KeyError: 'attn_output\.weight'\)",
    ),
    "shapes that do not fit": (swapped, r"blk\.1: its tensors do not fit the graph of llama"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_fault_is_one_line(tmp_path, fault):
    change, says = REFUSED[fault]
    model = change(open_model(write_graph(tmp_path / "model.gguf", "llama")))
    with pytest.raises(UnsupportedModelError, match=says) as caught:
        forward.logits(model, TOKENS)
    assert "\n" not in str(caught.value)


def reshaped(name: str, *shape: int):
    def change(model: Model) -> Model:
        tensor = replace(model.tensors[name], shape=shape)
        return replace(model, tensors={**model.tensors, name: tensor})

    return change


UNSOUND = [
    without_tensor("token_embd.weight"),
    reshaped("token_embd.weight", 2048, 128),
    reshaped("blk.0.attn_output.weight", 64),
    reshaped("blk.1.attn_output.weight", 128, 64),
    reshaped("output_norm.weight", 32),
    reshaped("output.weight", 2048, 128),
]


@pytest.mark.parametrize("change", UNSOUND)
def test_what_contradicts_itself_is_found_before_any_weight_is_read(tmp_path, change):
    def nobody(start: int, stop: int):
        raise AssertionError((start, stop))

    model = open_model(write_graph(tmp_path / "model.gguf", "llama"))
    model = replace(model, tensors={n: t.derived(nobody) for n, t in model.tensors.items()})
    forward.require_sound(model)
    with pytest.raises(UnsupportedModelError, match="its tensors do not fit the graph of llama"):
        forward.require_sound(change(model))


def test_a_table_of_too_few_positions_is_one_line(tmp_path):
    model = open_model(write_graph(tmp_path / "model.gguf", "gpt2"))
    short = reshaped("position_embd.weight", 2, 64)(model)
    with pytest.raises(UnsupportedModelError, match=r"position_embd\.weight has 2 rows, but"):
        forward.embed(short, TOKENS)


def test_a_layer_that_predicts_is_no_part_of_the_graph(tmp_path):
    model = open_model(write_graph(tmp_path / "model.gguf", "glm4moe-predicting"))
    expected = forward.logits(model, TOKENS)
    extra = {"blk.2.nextn.eh_proj.weight": model.tensors["blk.1.attn_q.weight"]}
    more = replace(model, tensors={**model.tensors, **extra})
    assert np.array_equal(forward.logits(more, TOKENS), expected)
