"""What the rows of several families share: shapes of tensors, keys, changes, kinds of layers.

Shapes are letters of `architecture.SIZES`; "?" where the graph does without the tensor.
"""

import re
from collections.abc import Callable, Mapping

from tqgguf.errors import FileFormatError
from tqgguf.models.huggingface.architecture import SIZES, Key
from tqgguf.models.huggingface.changes import interleaved, shifted
from tqgguf.models.huggingface.folder import Config

# GGUF name -> letters of its shape; "?" where the graph does without it.
ENDS = {"token_embd.weight": "V E", "output_norm.weight": "E", "output.weight": "V E ?"}
ATTENTION = {
    "blk.{}.attn_norm.weight": "E",
    "blk.{}.attn_q.weight": "Q E",
    "blk.{}.attn_k.weight": "K E",
    "blk.{}.attn_v.weight": "K E",
    "blk.{}.attn_output.weight": "E Q",
    "blk.{}.ffn_norm.weight": "E",
}
QKV_BIAS = {
    "blk.{}.attn_q.bias": "Q ?",
    "blk.{}.attn_k.bias": "K ?",
    "blk.{}.attn_v.bias": "K ?",
}
QK_NORM = {"blk.{}.attn_q_norm.weight": "D", "blk.{}.attn_k_norm.weight": "D"}

UP_DOWN = {"blk.{}.ffn_up.weight": "F E", "blk.{}.ffn_down.weight": "E F"}
GATED = {"blk.{}.ffn_gate.weight": "F E", **UP_DOWN}

GATED_BIAS = {
    "blk.{}.attn_output.bias": "E ?",
    "blk.{}.ffn_gate.bias": "F ?",
    "blk.{}.ffn_up.bias": "F ?",
    "blk.{}.ffn_down.bias": "E ?",
}
EXPERTS = {
    "blk.{}.ffn_gate_inp.weight": "X E",
    "blk.{}.ffn_gate_exps.weight": "X M E",
    "blk.{}.ffn_up_exps.weight": "X M E",
    "blk.{}.ffn_down_exps.weight": "X E M",
}
BIASED_NORMS = {
    "output_norm.bias": "E",
    "blk.{}.attn_norm.bias": "E",
    "blk.{}.ffn_norm.bias": "E",
    "blk.{}.attn_output.bias": "E",
    "blk.{}.ffn_up.bias": "F",
    "blk.{}.ffn_down.bias": "E",
}
POST_NORMS = {"blk.{}.post_attention_norm.weight": "E", "blk.{}.post_ffw_norm.weight": "E"}

# ggml rotates neighbouring rows of q and k.
PAIRS = (
    (re.compile(r"\.q_proj\."), lambda t, c: interleaved(t, c.n_head)),
    (re.compile(r"\.k_proj\."), lambda t, c: interleaved(t, c.n_head_kv)),
)
PLUS_ONE = ((re.compile(r"norm\.weight$"), lambda t, _: shifted(t, 1.0)),)

SILU = ("silu", "swish", None)
GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", None)

NO = (False, None)


def count(name: str, *keys: str) -> Key:
    return Key(name, lambda c: c.count(*keys))


def number(name: str, *keys: str) -> Key:
    return Key(name, lambda c: c.number(*keys))


def optional_count(name: str, key: str) -> Key:
    return Key(name, lambda c: None if c.get(key) is None else c.count(key))


def optional(name: str, key: str) -> Key:
    return Key(name, lambda c: None if c.get(key) is None else c.number(key))


BASE = (
    count("context_length", "max_position_embeddings", "n_positions", "n_ctx"),
    Key("embedding_length", lambda c: c.n_embd),
    Key("block_count", lambda c: c.n_layer),
    Key("feed_forward_length", lambda c: c.n_ff),
    Key("attention.head_count", lambda c: c.n_head),
    Key("attention.head_count_kv", lambda c: c.n_head_kv),
    count("vocab_size", "vocab_size"),
)
RMS = (number("attention.layer_norm_rms_epsilon", "rms_norm_eps"),)

LAYER_NORM = (
    number(
        "attention.layer_norm_epsilon",
        "layer_norm_epsilon",
        "norm_epsilon",
        "layer_norm_eps",
        "norm_eps",
    ),
)
HEAD_KEYS = (
    Key("attention.key_length", lambda c: c.head_dim),
    Key("attention.value_length", lambda c: c.head_dim),
)
MOE = (
    Key("expert_count", SIZES["X"]),
    count("expert_used_count", "num_experts_per_tok", "moe_k"),
)
EXPERT_WIDTH = (count("expert_feed_forward_length", "moe_intermediate_size"),)
ROPE_WIDTH = (Key("rope.dimension_count", lambda c: c.head_dim),)


def sliding_layers(period: int) -> Callable[[Config], list[bool] | None]:
    """Which layers see a window only, where it is not all but every `period`-th."""

    def layers(config: Config) -> list[bool] | None:
        types = config.get("layer_types")
        every = config.get("sliding_window_pattern", "_sliding_window_pattern")
        if isinstance(types, list):
            sliding = [t == "sliding_attention" for t in types]
        else:
            sliding = all_but_every(every if isinstance(every, int) and every else period, config)
        return None if sliding == all_but_every(period, config) else sliding

    return layers


def all_but_every(period: int, config: Config) -> list[bool]:
    return [i % period < period - 1 for i in range(config.n_layer)]


def windows(period: int) -> Callable[[Config], list[bool]]:
    """Which layers see a window only, by their kinds, else all but every `period`-th."""

    def layers(config: Config) -> list[bool]:
        kinds = config.get("layer_types")
        if isinstance(kinds, list):
            return [kind == "sliding_attention" for kind in kinds]
        return all_but_every(period, config)

    return layers


def first_dense(config: Config, layer: int) -> str:
    return "dense" if layer < dense_layers(config) else "experts"


def dense_layers(config: Config) -> int:
    """Layers with one FFN, which come first."""
    names = ("first_k_dense_replace", "moe_layer_start_index")
    return config.count(*names) if config.get(*names) else 0


def with_keys(keys: tuple[Key, ...], *others: Key) -> tuple[Key, ...]:
    """The keys, some of them replaced by others of the same name."""
    named = {key.name: key for key in others}
    return tuple(named.get(key.name, key) for key in keys)


def of_kind(kind: str, tensors: Mapping[str, str]) -> dict[str, str]:
    """The same tensors, which only layers of one kind have."""
    return {name: f"{size} @{kind}" for name, size in tensors.items()}


def sections(config: Config) -> list[int]:
    """How many rotated pairs follow each axis of an image; a text's positions are all alike."""
    found = config.section("rope_parameters", "rope_scaling").get("mrope_section")
    found = [11, 11, 10] if found is None else found
    if not isinstance(found, list) or not all(isinstance(n, int) for n in found):
        raise FileFormatError(f"{config.path}: mrope_section is no list of numbers")
    return [*found, 0, 0, 0, 0][:4]


SECTIONS = (Key("rope.dimension_sections", sections),)
SHARED = {
    "blk.{}.ffn_gate_shexp.weight": "N E @experts",
    "blk.{}.ffn_up_shexp.weight": "N E @experts",
    "blk.{}.ffn_down_shexp.weight": "E N @experts",
}
GATED_SHARED = {  # of one expert whose share a row of its own decides
    "blk.{}.ffn_gate_inp_shexp.weight": "E",
    "blk.{}.ffn_gate_shexp.weight": "T E",
    "blk.{}.ffn_up_shexp.weight": "T E",
    "blk.{}.ffn_down_shexp.weight": "E T",
}
