"""Granite: Llama's graph with multipliers, dense (Granite 4's too) or with experts."""

import re
from collections.abc import Mapping
from dataclasses import replace

from tqgguf.models.huggingface.architecture import SIZES, Architecture, Key
from tqgguf.models.huggingface.changes import in_halves
from tqgguf.models.huggingface.families._parts import (
    ATTENTION,
    ENDS,
    EXPERTS,
    MOE,
    NO,
    PAIRS,
    SILU,
    number,
    of_kind,
    with_keys,
)
from tqgguf.models.huggingface.families.llama import LLAMA
from tqgguf.models.huggingface.folder import Config

_GRANITE = Architecture(
    "granite",
    LLAMA.tensors,
    (
        *LLAMA.keys,
        number("attention.scale", "attention_multiplier"),
        number("embedding_scale", "embedding_multiplier"),
        number("residual_scale", "residual_multiplier"),
        number("logit_scale", "logits_scaling"),
    ),
    assumes={"hidden_act": SILU},
    defaults={
        "attention_multiplier": 1.0,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    },
    changes=PAIRS,
)


def _has_shared(config: Config) -> bool:
    return bool(config.get("shared_intermediate_size"))


_SHARED_HALVES = ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj")
_GRANITE_MOE = replace(
    _GRANITE,
    name="granitemoe",
    tensors={
        **ENDS,
        **ATTENTION,
        **EXPERTS,
        **of_kind(
            "shared",
            {
                "blk.{}.ffn_gate_shexp.weight": "Sh E",
                "blk.{}.ffn_up_shexp.weight": "Sh E",
                "blk.{}.ffn_down_shexp.weight": "E Sh",
            },
        ),
    },
    keys=(
        *_GRANITE.keys,
        *MOE,
        Key(
            "expert_shared_feed_forward_length",
            lambda c: SIZES["Sh"](c) if _has_shared(c) else None,
        ),
    ),
    assumes={"hidden_act": SILU, "attention_bias": NO},
    splits=(
        (
            re.compile(r"\.shared_mlp\.input_linear\.weight$"),
            lambda t, _: in_halves(t, "shared_mlp.input_linear", _SHARED_HALVES),
        ),
    ),
    layer_kind=lambda c, _: "shared" if _has_shared(c) else "",
    rope_factors=(),
)


def _attends_everywhere(config: Config) -> bool:
    """Whether a Granite 4 has neither Mamba's layers nor experts, as its small ones."""
    kinds = config.get("layer_types", "layers_block_type")
    dense = not config.get("num_local_experts") and _has_shared(config)
    return dense and isinstance(kinds, list) and set(kinds) <= {"attention", "full_attention"}


_DENSE_HALVES = ("mlp.gate_proj", "mlp.up_proj")
_GRANITE4 = replace(
    _GRANITE,
    tensors={
        **ENDS,
        **ATTENTION,
        "blk.{}.ffn_gate.weight": "Sh E",
        "blk.{}.ffn_up.weight": "Sh E",
        "blk.{}.ffn_down.weight": "E Sh",
    },
    keys=with_keys(_GRANITE.keys, Key("feed_forward_length", SIZES["Sh"])),
    assumes={"hidden_act": SILU, "attention_bias": NO, "position_embedding_type": ("rope",)},
    covers=_attends_everywhere,
    splits=(
        (
            re.compile(r"\.shared_mlp\.input_linear\.weight$"),
            lambda t, _: in_halves(t, "shared_mlp.input_linear", _DENSE_HALVES),
        ),
        (
            re.compile(r"\.shared_mlp\.output_linear\.weight$"),
            lambda t, _: [
                replace(t, name=t.name.replace("shared_mlp.output_linear", "mlp.down_proj"))
            ],
        ),
    ),
)

CLASSES: Mapping[str, Architecture] = {
    "GraniteForCausalLM": _GRANITE,
    "GraniteMoeHybridForCausalLM": _GRANITE4,
    "GraniteMoeForCausalLM": _GRANITE_MOE,
    "GraniteMoeSharedForCausalLM": _GRANITE_MOE,
}
