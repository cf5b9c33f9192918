"""Gemma 1 to 3 and EmbeddingGemma."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from tqgguf.models.huggingface.architecture import Architecture, Key
from tqgguf.models.huggingface.families._parts import (
    ATTENTION,
    BASE,
    ENDS,
    GATED,
    GELU,
    HEAD_KEYS,
    NO,
    PLUS_ONE,
    POST_NORMS,
    QK_NORM,
    RMS,
    count,
    number,
    optional,
    sliding_layers,
)
from tqgguf.models.huggingface.folder import Config

_GEMMA = Architecture(
    "gemma",
    {**ENDS, **ATTENTION, **GATED},
    (*BASE, *RMS, *HEAD_KEYS),
    assumes={"hidden_activation": GELU, "attention_bias": NO},
    changes=PLUS_ONE,
    always_tied=True,
    space_prefix=False,
)


def _gemma_scale(large: int) -> Callable[[Config], str | None]:
    """llama.cpp scales scores by the head's width, and by n_embd / n_head in the largest model."""

    def check(config: Config) -> str | None:
        computed = config.n_embd // config.n_head if config.n_layer == large else config.head_dim
        asked = config.get("query_pre_attn_scalar")
        if asked in (None, computed):
            return None
        return f"query_pre_attn_scalar is {asked}, but llama.cpp's graph computes {computed}"

    return check


_GEMMA2 = Architecture(
    "gemma2",
    {**_GEMMA.tensors, **POST_NORMS},
    (
        *_GEMMA.keys,
        number("attn_logit_softcapping", "attn_logit_softcapping"),
        number("final_logit_softcapping", "final_logit_softcapping"),
        count("attention.sliding_window", "sliding_window"),
        Key("attention.sliding_window_pattern", sliding_layers(2)),
    ),
    assumes={**_GEMMA.assumes, "use_bidirectional_attention": NO},
    check=_gemma_scale(46),
    changes=PLUS_ONE,
    always_tied=True,
    space_prefix=False,
)


def _gemma3_window(config: Config) -> int | None:
    """Width of the sliding window; a model whose every layer is global has none."""
    if config.get("sliding_window_pattern") == 1:
        return None
    return config.count("sliding_window")


_GEMMA3 = Architecture(
    "gemma3",
    {**_GEMMA2.tensors, **QK_NORM},
    (
        *_GEMMA.keys,
        optional("final_logit_softcapping", "final_logit_softcapping"),
        Key("attention.sliding_window", _gemma3_window),
        Key("attention.sliding_window_pattern", sliding_layers(6)),
    ),
    check=_gemma_scale(62),
    assumes={
        **_GEMMA.assumes,
        "attn_logit_softcapping": (None,),
        "use_bidirectional_attention": NO,
    },
    # The released config.json files leave out what equals transformers' Gemma3TextConfig.
    defaults={
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
    },
    changes=PLUS_ONE,
    space_prefix=False,
)


_GEMMA_EMBEDDING = replace(
    _GEMMA3,
    name="gemma-embedding",
    assumes={**_GEMMA3.assumes, "use_bidirectional_attention": (True,)},
    check=_gemma_scale(-1),
    dense=True,
)

CLASSES: Mapping[str, Architecture] = {
    "GemmaForCausalLM": _GEMMA,
    "Gemma2ForCausalLM": _GEMMA2,
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3ForConditionalGeneration": _GEMMA3,
    "Gemma3TextModel": _GEMMA_EMBEDDING,
}
