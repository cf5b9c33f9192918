"""ERNIE 4.5, dense and with experts."""

from collections.abc import Mapping

from tqgguf.models.huggingface.architecture import SHARED_COUNTS, SIZES, Architecture, Key
from tqgguf.models.huggingface.families._parts import (
    ATTENTION,
    BASE,
    ENDS,
    EXPERT_WIDTH,
    EXPERTS,
    GATED,
    HEAD_KEYS,
    MOE,
    NO,
    RMS,
    SHARED,
    SILU,
    count,
    dense_layers,
    first_dense,
    of_kind,
)
from tqgguf.models.huggingface.folder import Config

_ERNIE4_5 = Architecture(
    "ernie4_5",
    {**ENDS, **ATTENTION, **GATED},
    (*BASE, *RMS, *HEAD_KEYS),
    assumes={"hidden_act": SILU, "use_bias": NO},
    defaults={"rope_theta": 500_000.0},
)


def _every_layer_behind_the_first(config: Config) -> str | None:
    """ERNIE 4.5: llama.cpp gives experts to all layers behind the dense ones."""
    step, last = config.get("moe_layer_interval"), config.get("moe_layer_end_index")
    if step in (1, None) and last in (-1, config.n_layer - 1, None):
        return None
    return "some layers behind the first with experts have none, as llama.cpp's graph has not"


_ERNIE4_5_MOE = Architecture(
    "ernie4_5-moe",
    {
        **ENDS,
        **ATTENTION,
        **of_kind("dense", GATED),
        **of_kind("experts", EXPERTS),
        "blk.{}.exp_probs_b.bias": "X @experts",
        **SHARED,
    },
    (
        *_ERNIE4_5.keys,
        *MOE,
        *EXPERT_WIDTH,
        count("expert_shared_count", *SHARED_COUNTS),
        Key("expert_shared_feed_forward_length", SIZES["N"]),
        Key("interleave_moe_layer_step", lambda _: 1),
        Key("leading_dense_block_count", dense_layers),
    ),
    assumes=_ERNIE4_5.assumes,
    defaults=_ERNIE4_5.defaults,
    check=_every_layer_behind_the_first,
    layer_kind=first_dense,
)

CLASSES: Mapping[str, Architecture] = {
    "Ernie4_5_MoeForCausalLM": _ERNIE4_5_MOE,
    "Ernie4_5ForCausalLM": _ERNIE4_5,
    "Ernie4_5_ForCausalLM": _ERNIE4_5,
}
