"""How the graphs of architectures differ, as rows of a table.

Each row was read from llama.cpp's graph of the architecture (the release inside llama-cpp-python
0.3.36) and is proven against it in tests/network/test_architectures.py. What a model's tensors tell
needs no field: biases, q/k norms, norms on a sub-layer's output, experts, sinks, latent or linear
attention.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Windows:
    """Layers whose tokens see only the last few tokens; every period-th layer sees them all.

    base: the rotary base of such layers, None where it is that of the others. scaled: the
    metadata's scaling of rotary frequencies holds for them too. rotary_elsewhere: so are the other
    layers rotary. n_layer: the one size of model that has windows, 0 where all have.
    """

    period: int
    base: float | None = None
    scaled: bool = True
    rotary_elsewhere: bool = True
    n_layer: int = 0


@dataclass(frozen=True)
class Row:
    """How one architecture's graph differs from the others.

    rope: how dimensions are paired. sections: how those that positions of images turn are laid
    out; where a model has some, they are paired in halves. gainless: norms stand where others have
    one, but without a gain. joined_ffn: ffn_up holds the gate's rows and then its own.
    gated_attention: attn_q holds the queries' and the gates' rows, head by head. parallel: the FFN
    works beside the attention where it has no norm of its own, or where the metadata says so.
    renormalised: the chosen experts' shares sum to one, None where the metadata says it.
    no_rope_step: every so-many-th layer is not rotary. wide_layers: the size of model that divides
    scores by the root of n_embd / n_head. temperature_length: the key that says after how many
    tokens queries grow. yarn_multiplier: what rope.scaling.yarn_log_multiplier is divided by, 0
    where it is not read. yarn_scores: YaRN makes scores larger instead of queries and keys.
    reads: keys beyond those of all graphs; a file may hold them for a graph that ignores them.
    defaults: what is taken where the metadata lacks such a key.
    """

    rope: Literal["interleaved", "halves", "none"]
    norm: Literal["rms", "layer"] = "rms"
    sections: Literal["no", "blocks", "in turn"] = "no"
    gainless: bool = False
    ffn_norm: str = "ffn_norm"
    activation: Literal["silu", "gelu", "squared relu", "xielu", "clamped silu"] = "silu"
    joined_ffn: bool = False
    gated_attention: bool = False
    parallel: Literal["no", "without ffn norm", "as told"] = "no"
    gating: Literal["softmax", "sigmoid", "softmax of chosen"] = "softmax"
    renormalised: bool | None = True
    windows: Windows | None = None
    no_rope_step: int = 0
    rope_if_finetuned: bool = False
    embedding_by_width: bool = False
    multiplied_logits: bool = False
    wide_layers: int = 0
    temperature_length: str = ""
    yarn_multiplier: float = 0.0
    yarn_scores: bool = False
    reads: tuple[str, ...] = ()
    defaults: Mapping[str, float] = field(default_factory=dict)


_MULTIPLIERS = ("embedding_scale", "residual_scale", "attention.scale", "logit_scale")
_SHARES = ("expert_weights_scale",)
_MISNAMED = "post_attention_norm"  # the norm before the FFN has this name in some graphs

ARCHITECTURES: dict[str, Row] = {
    "llama": Row("interleaved"),
    "mistral3": Row(
        "interleaved",
        temperature_length="rope.scaling.original_context_length",
        yarn_multiplier=1.0,
        reads=("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
    ),
    "granite": Row("interleaved", rope_if_finetuned=True, reads=_MULTIPLIERS),
    "granitemoe": Row("interleaved", reads=_MULTIPLIERS),
    "smollm3": Row("interleaved", no_rope_step=4),
    "arcee": Row("interleaved", activation="squared relu"),
    "ernie4_5": Row("interleaved"),
    "ernie4_5-moe": Row("interleaved"),
    "internlm2": Row("interleaved"),
    "exaone": Row("halves"),
    "exaone4": Row(
        "halves",
        windows=Windows(4, rotary_elsewhere=False, n_layer=64),
        defaults={"attention.sliding_window": 4096},
    ),
    "seed_oss": Row("halves", ffn_norm=_MISNAMED),
    "apertus": Row("halves", activation="xielu"),
    "qwen": Row("halves"),
    "qwen2": Row("halves"),
    "qwen2vl": Row("halves", sections="blocks"),
    "qwen2moe": Row("halves", renormalised=False),
    "qwen3": Row("halves"),
    "qwen3vl": Row("halves", sections="in turn"),
    "qwen3vlmoe": Row("halves", sections="in turn"),
    "qwen3moe": Row("halves"),
    "qwen3next": Row("halves", ffn_norm=_MISNAMED, gated_attention=True),
    "qwen35": Row("halves", sections="in turn", ffn_norm=_MISNAMED, gated_attention=True),
    "qwen35moe": Row("halves", sections="in turn", ffn_norm=_MISNAMED, gated_attention=True),
    "olmo": Row("interleaved", norm="layer", gainless=True, reads=("attention.clamp_kqv",)),
    "olmo2": Row("halves", windows=Windows(4, scaled=False)),
    "olmoe": Row("halves", renormalised=False),
    "gemma": Row("halves", activation="gelu", embedding_by_width=True),
    "gemma2": Row(
        "halves",
        activation="gelu",
        embedding_by_width=True,
        windows=Windows(2),
        wide_layers=46,
        defaults={
            "attention.sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3": Row(
        "halves",
        activation="gelu",
        embedding_by_width=True,
        windows=Windows(6, base=10000.0, scaled=False),
        wide_layers=62,
        reads=("final_logit_softcapping",),
    ),
    "phi3": Row("halves", joined_ffn=True),
    "phimoe": Row("halves"),
    "glm4": Row("interleaved", sections="blocks", joined_ffn=True),
    "glm4moe": Row(
        "halves",
        sections="blocks",
        ffn_norm=_MISNAMED,
        gating="sigmoid",
        renormalised=None,
        reads=_SHARES,
    ),
    "gpt-oss": Row(
        "halves",
        ffn_norm=_MISNAMED,
        activation="clamped silu",
        gating="softmax of chosen",
        renormalised=False,
        windows=Windows(2),
    ),
    "deepseek": Row("interleaved", renormalised=False, reads=_SHARES),
    "deepseek2": Row(
        "interleaved",
        renormalised=None,
        temperature_length="attention.temperature_length",
        yarn_multiplier=0.1,
        yarn_scores=True,
        reads=_SHARES,
    ),
    "dots1": Row("halves", renormalised=None, reads=_SHARES),
    "bailingmoe2": Row("halves", renormalised=None, reads=_SHARES),
    "cohere2": Row(
        "interleaved",
        norm="layer",
        parallel="without ffn norm",
        windows=Windows(4, rotary_elsewhere=False),
        multiplied_logits=True,
        reads=("logit_scale",),
    ),
    "command-r": Row(
        "interleaved",
        norm="layer",
        parallel="without ffn norm",
        multiplied_logits=True,
        reads=("logit_scale",),
    ),
    "gpt2": Row("none", norm="layer", activation="gelu"),
    "starcoder": Row("none", norm="layer", activation="gelu"),
    "starcoder2": Row("halves", norm="layer", activation="gelu"),
    "stablelm": Row("halves", norm="layer", parallel="without ffn norm"),
    "nemotron": Row("halves", norm="layer", activation="squared relu"),
    "gptneox": Row("halves", norm="layer", activation="gelu", parallel="as told"),
    "falcon": Row("halves", norm="layer", activation="gelu", parallel="without ffn norm"),
    "phi2": Row("halves", norm="layer", activation="gelu", parallel="without ffn norm"),
    "bloom": Row(
        "none", norm="layer", activation="gelu", defaults={"attention.max_alibi_bias": 8.0}
    ),
    "mpt": Row(
        "none",
        norm="layer",
        activation="gelu",
        reads=("attention.clamp_kqv", "attention.max_alibi_bias"),
    ),
}
