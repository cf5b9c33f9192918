"""gpt-oss: biased experts that take turns, sinks, windows."""

from collections.abc import Mapping

from tqgguf.models.huggingface.architecture import Architecture, Key
from tqgguf.models.huggingface.families._parts import (
    BASE,
    ENDS,
    EXPERTS,
    HEAD_KEYS,
    MOE,
    NO,
    RMS,
    SILU,
    count,
    sliding_layers,
)
from tqgguf.models.huggingface.folder import Config


def _rounded_ramp(config: Config) -> str | None:
    rope = config.section("rope_parameters", "rope_scaling")
    if rope.get("truncate") is not False:
        return None
    return "llama.cpp rounds the ends of YaRN's ramp, which truncate: false keeps as they are"


_GPT_OSS = Architecture(
    "gpt-oss",
    {
        **ENDS,
        "output.weight": "V E",
        "blk.{}.attn_norm.weight": "E",
        "blk.{}.attn_q.weight": "Q E",
        "blk.{}.attn_q.bias": "Q",
        "blk.{}.attn_k.weight": "K E",
        "blk.{}.attn_k.bias": "K",
        "blk.{}.attn_v.weight": "K E",
        "blk.{}.attn_v.bias": "K",
        "blk.{}.attn_sinks.weight": "B",
        "blk.{}.attn_output.weight": "E Q",
        "blk.{}.attn_output.bias": "E",
        "blk.{}.post_attention_norm.weight": "E",
        **EXPERTS,
        "blk.{}.ffn_gate_inp.bias": "X",
        "blk.{}.ffn_gate_exps.bias": "X M",
        "blk.{}.ffn_up_exps.bias": "X M",
        "blk.{}.ffn_down_exps.bias": "X E",
    },
    (
        *BASE,
        *RMS,
        *HEAD_KEYS,
        *MOE,
        count("expert_feed_forward_length", "intermediate_size"),
        count("attention.sliding_window", "sliding_window"),
        Key("attention.sliding_window_pattern", sliding_layers(2)),
    ),
    assumes={
        "hidden_act": SILU,
        "attention_bias": (True, None),
        "tie_word_embeddings": NO,
        "swiglu_limit": (7.0, None),
    },
    experts_take_turns=True,
    remark=_rounded_ramp,
    rope_reads=("truncate",),
)

CLASSES: Mapping[str, Architecture] = {
    "GptOssForCausalLM": _GPT_OSS,
}
