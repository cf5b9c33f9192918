"""Gemma 4: layers with and without a window differ in the size and the number of their heads.

The last layers may use the keys and values of earlier ones, a vector of each token's own may join
the stream behind every layer, and experts may work beside the FFN.
"""

from collections.abc import Mapping

from tqgguf.models.huggingface.architecture import SIZES, Architecture, Key, Merging
from tqgguf.models.huggingface.families._parts import (
    BASE,
    ENDS,
    GELU,
    NO,
    POST_NORMS,
    RMS,
    count,
    of_kind,
    optional,
    with_keys,
)
from tqgguf.models.huggingface.folder import Config

_VISIBLE = (
    *("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>"),
    *("<|tool_response>", "<tool_response|>", '<|"|>'),
)


def _is_sliding(config: Config) -> list[bool]:
    """Which layers see a window only: all but every sixth where it is not said; never the last."""
    kinds = config.get("layer_types")
    if not isinstance(kinds, list) or len(kinds) != config.n_layer:
        kinds = ["full_attention" if i % 6 == 5 else "sliding" for i in range(config.n_layer)]
    return [kind != "full_attention" for kind in kinds[:-1]] + [False]


def _first_shared(config: Config) -> int:
    """The first of the last layers, which have no keys and values of their own."""
    return config.n_layer - _shared(config)


def _shared(config: Config) -> int:
    return config.count("num_kv_shared_layers") if config.get("num_kv_shared_layers") else 0


def _kind(config: Config, layer: int) -> str:
    window = "sliding" if _is_sliding(config)[layer] else "full"
    own = layer < _first_shared(config)
    valued = own and (window == "sliding" or not config.get("attention_k_eq_v"))
    kinds = (
        window,
        f"{'keyed' if own else 'keyless'}-{window}",
        f"{'valued' if valued else 'valueless'}-{window}",
        "narrow" if own or not config.get("use_double_wide_mlp") else "wide",
        "experts" if config.get("enable_moe_block") else "dense",
        "deep" if config.get("hidden_size_per_layer_input") else "",
    )
    return " ".join(kinds)


def _key_heads(config: Config) -> int | list[int]:
    """Of each layer, or of all where they have as many."""
    windowed, full = config.n_head_kv, config.full_n_head_kv
    if windowed == full:
        return full
    return [windowed if sliding else full for sliding in _is_sliding(config)]


def _widths(config: Config) -> int | list[int]:
    """Of the FFN, which may be twice as wide in the layers that share keys and values."""
    if not config.get("use_double_wide_mlp"):
        return config.n_ff
    wide = _first_shared(config)
    return [config.n_ff * (1 if i < wide else 2) for i in range(config.n_layer)]


def _problem(config: Config) -> str | None:
    """What llama.cpp's graph computes otherwise."""
    first = _first_shared(config)
    if _shared(config) and _is_sliding(config)[max(first - 2, 0) : first] != [True, False]:
        return (
            f"layers from {first} on share keys and values, but the two before are not one with "
            "a window and one without, from which llama.cpp's graph takes them"
        )
    tokens = config.get("vocab_size_per_layer_input")
    if config.get("hidden_size_per_layer_input") and tokens not in (None, config.get("vocab_size")):
        return f"vocab_size_per_layer_input is {tokens}, not vocab_size"
    return None


def _switched(name: str, **sizes: str) -> dict[str, str]:
    """A tensor that layers of different kinds have in different sizes."""
    specs = (f"{size} @{kind.replace('_', '-')}" for kind, size in sizes.items())
    return {f"blk.{{}}.{name}.weight": " | ".join(specs)}


def _of_experts(config: Config, name: str) -> int | None:
    return config.count(name) if config.get("enable_moe_block") else None


_KEYS = {"keyed_sliding": "K E", "keyed_full": "Kg E"}
_KEY_NORMS = {"keyed_sliding": "D", "keyed_full": "Dg"}
_VALUES = {"valued_sliding": "K E", "valued_full": "Kg E"}
_UNUSED = {"keyless_sliding": "K E ?", "keyless_full": "Kg E ?"}  # some files hold them
_GEMMA4 = Architecture(
    "gemma4",
    {
        **ENDS,
        "per_layer_token_embd.weight": "V PL @deep",
        "per_layer_model_proj.weight": "PL E @deep",
        "per_layer_proj_norm.weight": "Pl @deep",
        "blk.{}.attn_norm.weight": "E",
        **_switched("attn_q", sliding="Q E", full="Qg E"),
        **_switched("attn_k", **_KEYS, **_UNUSED),
        **_switched("attn_v", **_VALUES, valueless_sliding="K E ?", valueless_full="Kg E ?"),
        **_switched("attn_q_norm", sliding="D", full="Dg"),
        **_switched("attn_k_norm", **_KEY_NORMS, keyless_sliding="D ?", keyless_full="Dg ?"),
        **_switched("attn_output", sliding="E Q", full="E Qg"),
        "blk.{}.ffn_norm.weight": "E",
        **_switched("ffn_gate", narrow="F E", wide="G E"),
        **_switched("ffn_up", narrow="F E", wide="G E"),
        **_switched("ffn_down", narrow="E F", wide="E G"),
        **POST_NORMS,
        **of_kind(
            "experts",
            {
                "blk.{}.ffn_gate_inp.weight": "X E",
                "blk.{}.ffn_gate_inp.scale": "E",
                "blk.{}.ffn_gate_up_exps.weight": "X 2M E",
                "blk.{}.ffn_down_exps.weight": "X E M",
                "blk.{}.ffn_down_exps.scale": "X",
                "blk.{}.pre_ffw_norm_2.weight": "E",
                "blk.{}.post_ffw_norm_1.weight": "E",
                "blk.{}.post_ffw_norm_2.weight": "E",
            },
        ),
        **of_kind(
            "deep",
            {
                "blk.{}.inp_gate.weight": "Pl E",
                "blk.{}.proj.weight": "E Pl",
                "blk.{}.post_norm.weight": "E",
            },
        ),
        "blk.{}.layer_output_scale.weight": "1 ?",
    },
    (
        *with_keys(
            BASE,
            Key("feed_forward_length", _widths),
            Key("attention.head_count_kv", _key_heads),
        ),
        *RMS,
        Key("attention.key_length", SIZES["Dg"]),
        Key("attention.value_length", SIZES["Dg"]),
        Key("attention.key_length_swa", SIZES["D"]),
        Key("attention.value_length_swa", SIZES["D"]),
        Key("rope.dimension_count", SIZES["Dg"]),
        Key("rope.dimension_count_swa", SIZES["D"]),
        optional("final_logit_softcapping", "final_logit_softcapping"),
        count("attention.sliding_window", "sliding_window"),
        Key("attention.sliding_window_pattern", _is_sliding),
        Key("attention.shared_kv_layers", _shared),
        Key(
            "embedding_length_per_layer_input",
            lambda c: SIZES["Pl"](c) if c.get("hidden_size_per_layer_input") else 0,
        ),
        Key("expert_count", lambda c: _of_experts(c, "num_experts")),
        Key("expert_used_count", lambda c: _of_experts(c, "top_k_experts")),
        Key("expert_feed_forward_length", lambda c: _of_experts(c, "moe_intermediate_size")),
    ),
    assumes={
        "hidden_activation": GELU,
        "attention_bias": NO,
        "use_bidirectional_attention": (None, "vision"),
    },
    check=_problem,
    layer_kind=_kind,
    merging=Merging("gemma4", frozenset(_VISIBLE)),
    experts_stay_fused=True,
    rope_factors=("proportional",),
)

CLASSES: Mapping[str, Architecture] = {
    "Gemma4ForCausalLM": _GEMMA4,
    "Gemma4ForConditionalGeneration": _GEMMA4,
    "Gemma4UnifiedForConditionalGeneration": _GEMMA4,
}
