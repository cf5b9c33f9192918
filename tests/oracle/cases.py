"""Tiny models of every architecture, as transformers saves them; the oracles' common input.

torch is imported when a folder is written, so that collecting needs neither torch nor transformers.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import decoders

from tests.models.huggingface.bpe import train_byte_level
from tests.models.huggingface.test_sentencepiece_json import as_json
from tests.tiny_models import DATA

TOKENS = [1, 5, 300, 1400, 77, 2047, 12, 12, 900, 33, *range(600, 630)]
SIZES = {
    "vocab_size": 2048,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}
GPT2_SIZES = {
    "vocab_size": 2048,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "num_experts": 4}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
QUARTER = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Case:
    """A transformers config class and its values; how the weights are saved."""

    config: str
    values: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Any] = field(default_factory=lambda: SIZES)
    dtype: str = "float32"
    shard: str = "1GB"
    byte_level: bool = False
    pieces: bool = False  # SentencePiece's, saved as tokenizer.json
    added: tuple[str, ...] = ()  # special tokens that the official converter looks for
    rotate: str = "fused"  # how far the architecture can be folded
    auto: str = "AutoModelForCausalLM"


def seeing(
    config: str,
    text: Mapping[str, Any],
    vision: Mapping[str, Any],
    *,
    rotate: str = "values",
    byte_level: bool = True,
) -> "Case":
    """A multimodal model: its language model as in the other cases, and a small vision tower."""
    values = {"text_config": {**SIZES, **text}, "vision_config": vision}
    auto = "AutoModelForImageTextToText"
    return Case(config, values, {}, byte_level=byte_level, rotate=rotate, auto=auto)


def longrope(original: int) -> dict[str, Any]:
    """Factors for heads of 16 weights."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0}
    rope["original_max_position_embeddings"] = original
    short, long = np.linspace(1, 2, 8).tolist(), np.linspace(1, 9, 8).tolist()
    return {
        "rope_parameters": rope | {"short_factor": short, "long_factor": long},
        "original_max_position_embeddings": original,
    }


DEEPSEEK = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
}
DELTA = {
    "head_dim": 32,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "num_hidden_layers": 4,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [2, 1, 1],
        "partial_rotary_factor": 0.25,
    },
}
SIGLIP = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
TOWER = {"hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 64}
FEW = {"num_local_experts": 4, "num_experts_per_tok": 2}
GRANITE = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.6,
    "logits_scaling": 2.0,
}
DEEPSEEK_EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.5,
}
GEMMA4 = {
    "head_dim": 16,
    "global_head_dim": 32,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "sliding_window": 8,
    "hidden_size_per_layer_input": 0,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
}
CASES = {
    "llama": Case("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": Case("LlamaConfig", {"head_dim": 32}),
    "llama-tied": Case("LlamaConfig", {"tie_word_embeddings": True}),
    "llama-bf16-sharded": Case("LlamaConfig", dtype="bfloat16", shard="100KB"),
    "llama-f16": Case("LlamaConfig", dtype="float16"),
    "llama-theta": Case("LlamaConfig", {"rope_parameters": {"rope_theta": 500000.0}}),
    "llama-linear": Case(
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "llama-llama3": Case("LlamaConfig", {"rope_parameters": LLAMA3}),
    "llama-yarn": Case("LlamaConfig", {"rope_parameters": YARN}),
    "llama-yarn-attention": Case(
        "LlamaConfig", {"rope_parameters": {**YARN, "attention_factor": 1.5}}
    ),
    "llama-yarn-mscale": Case(
        "LlamaConfig", {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.2}}
    ),
    "llama-longrope": Case("LlamaConfig", longrope(16)),
    "mistral": Case("MistralConfig", {"head_dim": 16, "sliding_window": None}),
    "mixtral": Case("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": Case("Qwen2Config", byte_level=True),
    "qwen2-yarn": Case("Qwen2Config", {"rope_parameters": YARN}, byte_level=True),
    "qwen3": Case("Qwen3Config", {"head_dim": 32}, byte_level=True),
    "qwen3-tied": Case(
        "Qwen3Config", {"head_dim": 32, "tie_word_embeddings": True}, byte_level=True
    ),
    "qwen3-moe": Case(
        "Qwen3MoeConfig", {**EXPERTS, "head_dim": 32, "norm_topk_prob": True}, byte_level=True
    ),
    "phi3": Case("Phi3Config"),
    "phi3-partial": Case("Phi3Config", {"partial_rotary_factor": 0.75}),
    "phi3-long": Case("Phi3Config", longrope(16)),
    "phi3-short": Case("Phi3Config", longrope(256) | {"max_position_embeddings": 1024}),
    "gpt2": Case("GPT2Config", sizes=GPT2_SIZES, byte_level=True),
    "gpt2-wide": Case("GPT2Config", {"n_inner": 96}, sizes=GPT2_SIZES, byte_level=True),
    "starcoder2": Case(
        "Starcoder2Config", {"use_bias": True, "sliding_window": None}, byte_level=True
    ),
    "smollm3": Case("SmolLM3Config", {"num_hidden_layers": 5}, byte_level=True),
    "smollm3-tied": Case("SmolLM3Config", {"tie_word_embeddings": True}, byte_level=True),
    "granite": Case("GraniteConfig", GRANITE),
    "olmo2": Case("Olmo2Config", byte_level=True, rotate="values"),
    "olmo3": Case(
        "Olmo3Config",
        {
            "num_hidden_layers": 5,
            "sliding_window": 8,
            "rope_parameters": {
                "full_attention": {**YARN},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        byte_level=True,
        rotate="values",
    ),
    "ernie4_5": Case("Ernie4_5Config", {"head_dim": 32, "use_bias": False}),
    "ernie4_5-moe": Case(
        "Ernie4_5_MoeConfig",
        {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 48,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
        },
    ),
    "arcee": Case("ArceeConfig", {"hidden_act": "relu2"}),
    "seed-oss": Case("SeedOssConfig", {"head_dim": 32, "attention_bias": True}, byte_level=True),
    "olmoe": Case(
        "OlmoeConfig",
        {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4},
        byte_level=True,
        added=("<|endoftext|>", "<|padding|>"),
    ),
    "exaone4": Case(
        "Exaone4Config",
        {
            "sliding_window": None,
            "layer_types": ["full_attention"] * 3,
            "rope_parameters": LLAMA3,
        },
        byte_level=True,
        rotate="values",
    ),
    "glm4": Case(
        "Glm4Config",
        {"head_dim": 32, "partial_rotary_factor": 0.5, "attention_bias": True},
        byte_level=True,
        added=("<|endoftext|>", "<|user|>"),
        rotate="values",
    ),
    "qwen2-moe": Case(
        "Qwen2MoeConfig",
        {**EXPERTS, "shared_expert_intermediate_size": 96, "norm_topk_prob": False},
        byte_level=True,
    ),
    "qwen2_5-vl": seeing(
        "Qwen2_5_VLConfig",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [2, 3, 3],
            }
        },
        {
            "depth": 1,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 32,
            "out_hidden_size": 64,
        },
    ),
    "qwen3-vl": seeing(
        "Qwen3VLConfig",
        {
            "head_dim": 32,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
        },
        {**TOWER, "depth": 2, "deepstack_visual_indexes": [0]},
    ),
    "ministral3": Case(
        "Ministral3Config",
        {
            "head_dim": 32,
            "rope_parameters": {
                **YARN,
                "original_max_position_embeddings": 16,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.5,
            },
        },
    ),
    "deepseek3": Case("DeepseekV3Config", DEEPSEEK, byte_level=True),
    "deepseek3-yarn": Case(
        "DeepseekV3Config",
        {
            **DEEPSEEK,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
        byte_level=True,
    ),
    "deepseek2": Case(
        "DeepseekV2Config",
        {**DEEPSEEK, "norm_topk_prob": False, "n_group": 1, "topk_group": 1},
        byte_level=True,
    ),
    "deepseek2-lite": Case(
        "DeepseekV2Config",
        {
            **DEEPSEEK,
            "norm_topk_prob": False,
            "n_group": 1,
            "topk_group": 1,
            "q_lora_rank": None,
            "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
            "num_hidden_layers": 27,  # by which llama.cpp knows it
            "first_k_dense_replace": 25,
        },
        byte_level=True,
    ),
    "deepseek3-plain-queries": Case(
        "DeepseekV3Config", {**DEEPSEEK, "q_lora_rank": None}, byte_level=True
    ),
    "gpt-oss": Case(
        "GptOssConfig",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 32,
            "sliding_window": 8,
            "rope_parameters": {**YARN, "beta_fast": 32.0, "beta_slow": 1.0},
        },
        byte_level=True,
    ),
    "glm4-moe": Case(
        "Glm4MoeConfig",
        {
            **DEEPSEEK_EXPERTS,
            "head_dim": 32,
            "attention_bias": True,
            "use_qk_norm": True,
        },
        byte_level=True,
        added=("[gMASK]", "<|user|>", "<|observation|>"),
    ),
    "qwen3_5": Case("Qwen3_5TextConfig", DELTA, byte_level=True),
    "qwen3_5-moe": Case(
        "Qwen3_5MoeTextConfig",
        {**DELTA, **EXPERTS, "shared_expert_intermediate_size": 32},
        byte_level=True,
    ),
    "qwen3-next": Case(
        "Qwen3NextConfig",
        {**DELTA, **EXPERTS, "shared_expert_intermediate_size": 32, "rope_parameters": QUARTER},
        byte_level=True,
    ),
    "gpt-neox": Case("GPTNeoXConfig", {"rope_parameters": QUARTER}, byte_level=True),
    "gpt-neox-in-turn": Case(
        "GPTNeoXConfig",
        {"rope_parameters": QUARTER, "use_parallel_residual": False},
        byte_level=True,
    ),
    "phi2": Case("PhiConfig", {"rope_parameters": QUARTER}, byte_level=True),
    "stablelm": Case(
        "StableLmConfig", {"rope_parameters": QUARTER, "use_qkv_bias": True}, byte_level=True
    ),
    "stablelm-parallel": Case(
        "StableLmConfig",
        {"rope_parameters": QUARTER, "use_parallel_residual": True},
        byte_level=True,
    ),
    "command-r": Case(
        "CohereConfig", {"tie_word_embeddings": True}, byte_level=True, rotate="values"
    ),
    "cohere2": Case(
        "Cohere2Config",
        {"tie_word_embeddings": True, "sliding_window": 8, "num_hidden_layers": 5},
        byte_level=True,
        rotate="values",
    ),
    "granite-moe": Case("GraniteMoeConfig", {**GRANITE, **FEW}),
    "granite-moe-shared": Case(
        "GraniteMoeSharedConfig", {**GRANITE, **FEW, "shared_intermediate_size": 32}
    ),
    "granite4-dense": Case(
        "GraniteMoeHybridConfig",
        {
            **GRANITE,
            "num_local_experts": 0,
            "shared_intermediate_size": 80,
            "layer_types": ["full_attention"] * 3,
            "position_embedding_type": "rope",
        },
    ),
    "dots1": Case("Dots1Config", {**DEEPSEEK_EXPERTS, "num_key_value_heads": 4}, byte_level=True),
    "nemotron": Case("NemotronConfig", {"rope_parameters": QUARTER}),
    "olmo": Case(
        "OlmoConfig",
        {"clip_qkv": 2.0},
        byte_level=True,
        added=("<|endoftext|>", "<|padding|>"),
    ),
    "qwen3-vl-moe": seeing(
        "Qwen3VLMoeConfig",
        {
            **EXPERTS,
            "head_dim": 32,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
        },
        {**TOWER, "depth": 2, "deepstack_visual_indexes": [0]},
    ),
    "qwen3_5-vl": seeing("Qwen3_5Config", DELTA, {**TOWER, "depth": 1}, rotate="fused"),
    "gemma3-vl": seeing(
        "Gemma3Config",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 8,
            "num_hidden_layers": 6,
            "tie_word_embeddings": True,
        },
        {**SIGLIP, "image_size": 28, "patch_size": 14},
        byte_level=False,
    ),
    "mistral3-vl": seeing(
        "Mistral3Config",
        {"model_type": "mistral", "head_dim": 32, "sliding_window": None},
        {**SIGLIP, "model_type": "pixtral", "head_dim": 16},
        rotate="fused",
    ),
    "gemma": Case("GemmaConfig", {"head_dim": 32, "tie_word_embeddings": True}, rotate="values"),
    "gemma2": Case(
        "Gemma2Config",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 8,
            "tie_word_embeddings": True,
        },
        rotate="values",
    ),
    "gemma3": Case(
        "Gemma3TextConfig",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 8,
            "num_hidden_layers": 6,  # the last of them global
            "tie_word_embeddings": True,
        },
        rotate="values",
    ),
    "gemma4": Case("Gemma4TextConfig", GEMMA4, pieces=True, rotate="none"),
    "gemma4-few-keys": Case(
        "Gemma4TextConfig",
        {
            **GEMMA4,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "hidden_size_per_layer_input": 0,
        },
        pieces=True,
        rotate="none",
    ),
    "gemma4-deep": Case(
        "Gemma4TextConfig",
        {
            **GEMMA4,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": 2048,
        },
        pieces=True,
        rotate="none",
    ),
    "gemma4-moe": Case(
        "Gemma4TextConfig",
        {
            **GEMMA4,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 32,
        },
        pieces=True,
        rotate="none",
    ),
    "gemma3-other-pattern": Case(
        "Gemma3TextConfig",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 8,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            "tie_word_embeddings": True,
        },
        rotate="values",
    ),
}


def write_folder(folder: Path, case: Case) -> np.ndarray:
    """Write a random model as transformers saves it; its log-probabilities: (n_tokens, n_vocab)."""
    import torch

    save_random(folder, case)
    with torch.no_grad():
        logits = loaded(folder, case.auto)(torch.tensor([TOKENS])).logits[0]
        return torch.log_softmax(logits.double(), -1).numpy()


def save_random(folder: Path, case: Case) -> None:
    """Write a random model, and a tokenizer, as transformers saves them."""
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = getattr(transformers, case.config)(**{**case.sizes, **case.values})
    model = getattr(transformers, case.auto).from_config(config, attn_implementation="eager")
    for name, parameter in model.named_parameters():
        adds_one = "Gemma" in case.config and "Gemma4" not in case.config
        scramble(name, parameter, centre=0 if adds_one else 1)
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.fill_(0.7)
    model.to(getattr(torch, case.dtype)).save_pretrained(folder, max_shard_size=case.shard)
    if case.pieces:
        tokenizer = as_json("none")
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback()])
        tokenizer.save(str(folder / "tokenizer.json"))
    else:
        write_tokenizer(folder, byte_level=case.byte_level, added=case.added)


def loaded(folder: Path, auto: str) -> Any:
    """A folder's model in float32, ready to compute."""
    import torch
    import transformers

    factory = getattr(transformers, auto)
    return factory.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def scramble(name: str, parameter: Any, *, centre: float) -> None:
    """Random values in place: gains around `centre` but far from it, biases far from 0.

    The logits stay moderate, since llama.cpp looks GELU up in a table of float16.
    """
    import torch

    noise = torch.randn_like(parameter)
    if "norm" in name or ".ln_" in name or name.endswith("scale"):
        noise = noise / 2 + centre
        if "per_layer_input" in name:  # what it follows is a GELU of the whole stream
            noise = noise / 8
    elif not name.endswith("bias"):
        noise = noise / parameter.shape[-1] ** 0.5
    if "embed" in name or "lm_head" in name or "wte" in name:
        noise = noise / 2
    with torch.no_grad():
        parameter.copy_(noise)


def write_tokenizer(folder: Path, *, byte_level: bool, added: tuple[str, ...]) -> None:
    if byte_level:
        tokenizer = train_byte_level("qwen2", SIZES["vocab_size"] - len(added))
        tokenizer = tokenizer.from_str(tokenizer.to_str())
        tokenizer.add_special_tokens(list(added))
        tokenizer.save(str(folder / "tokenizer.json"))
        return
    for file in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(DATA / "novels-5m" / file, folder)
