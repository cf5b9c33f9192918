"""Phi 3 and 4."""

from collections.abc import Mapping

from tqgguf.models.huggingface.architecture import Architecture, Key, rope_width
from tqgguf.models.huggingface.families._parts import BASE, ENDS, RMS, SILU
from tqgguf.models.huggingface.folder import Config


def _window_or_0(config: Config) -> int:
    return config.count("sliding_window") if config.get("sliding_window") else 0


CLASSES: Mapping[str, Architecture] = {
    "Phi3ForCausalLM": Architecture(
        "phi3",
        {
            **ENDS,
            "blk.{}.attn_norm.weight": "E",
            "blk.{}.attn_qkv.weight": "A E",
            "blk.{}.attn_output.weight": "E Q",
            "blk.{}.ffn_norm.weight": "E",
            "blk.{}.ffn_up.weight": "G E",
            "blk.{}.ffn_down.weight": "E F",
        },
        (
            *BASE,
            *RMS,
            Key("rope.dimension_count", rope_width),
            # llama.cpp switches Phi-3's window off; 0 also tells it apart from Phi-4.
            Key("attention.sliding_window", _window_or_0),
        ),
        assumes={"hidden_act": SILU},
        partial_rotary=True,
        rope_factors=("longrope",),
    ),
}
