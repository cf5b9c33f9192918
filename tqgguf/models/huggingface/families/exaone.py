"""EXAONE 4: norms stand on what a sub-layer gives; layers that see all are not rotary."""

from collections.abc import Mapping

from tqgguf.models.huggingface.architecture import Architecture, Key
from tqgguf.models.huggingface.families._parts import (
    BASE,
    ENDS,
    GATED,
    HEAD_KEYS,
    POST_NORMS,
    QK_NORM,
    RMS,
    SILU,
    optional_count,
    sliding_layers,
)
from tqgguf.models.huggingface.folder import Config

_WINDOWED = 64  # layers of the one size in which llama.cpp's graph has windows


def _windows_in_one_size(config: Config) -> str | None:
    if (config.get("sliding_window") is not None) == (config.n_layer == _WINDOWED):
        return None
    fact = "has" if config.n_layer == _WINDOWED else "has no"
    return (
        f"sliding_window is {config.get('sliding_window')} in {config.n_layer} layers; llama.cpp's "
        f"exaone4 graph {fact} windows there, and is rotary accordingly"
    )


def _pattern(config: Config) -> list[bool] | None:
    return None if config.get("sliding_window") is None else sliding_layers(4)(config)


_EXAONE4 = Architecture(
    "exaone4",
    {
        **ENDS,
        "blk.{}.attn_q.weight": "E E",
        "blk.{}.attn_k.weight": "K E",
        "blk.{}.attn_v.weight": "K E",
        **QK_NORM,
        "blk.{}.attn_output.weight": "E E",
        **POST_NORMS,
        **GATED,
    },
    (
        *BASE,
        *RMS,
        *HEAD_KEYS,
        optional_count("attention.sliding_window", "sliding_window"),
        Key("attention.sliding_window_pattern", _pattern),
    ),
    assumes={"hidden_act": SILU},
    check=_windows_in_one_size,
    rope_factors=("llama3",),
)

CLASSES: Mapping[str, Architecture] = {
    "Exaone4ForCausalLM": _EXAONE4,
}
