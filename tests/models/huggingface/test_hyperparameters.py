"""config.json in its older and newer dialects, and what it may not say."""

import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.huggingface.folders import LLAMA
from tests.models.huggingface.test_mutations import MUTATIONS, mutate
from tqgguf.errors import TqggufError, UnknownClassError, UnsupportedModelError
from tqgguf.models.huggingface import convert_hyperparameters
from tqgguf.models.huggingface.architecture import check_assumptions
from tqgguf.models.huggingface.architectures import CLASSES, find_architecture
from tqgguf.models.huggingface.folder import Config
from tqgguf.models.huggingface.rope import rope_tensors

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
LN4 = math.log(4)
LONG = {"short_factor": [1.0] * 3, "long_factor": [2.0] * 3}
GEMMA = {"head_dim": 8, "hidden_activation": "gelu_pytorch_tanh", "hidden_act": None}
GEMMA |= {"query_pre_attn_scalar": 8, "sliding_window": 16}
SOFTCAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
EXTRA = {
    "MixtralForCausalLM": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen3MoeForCausalLM": {**EXPERTS, "norm_topk_prob": True},
    "Phi3ForCausalLM": {"partial_rotary_factor": 0.75, "sliding_window": 64},
    "GPT2LMHeadModel": {"layer_norm_epsilon": 1e-5, "activation_function": "gelu_new"},
    "Starcoder2ForCausalLM": {"norm_epsilon": 1e-5, "hidden_act": "gelu_pytorch_tanh"},
    "GemmaForCausalLM": GEMMA,
    "Gemma2ForCausalLM": {**GEMMA, **SOFTCAPS},
    "Gemma3ForCausalLM": GEMMA,
    "Gemma3ForConditionalGeneration": GEMMA,
    "Gemma3TextModel": {**GEMMA, "use_bidirectional_attention": True},
}
EXTRA["GptOssForCausalLM"] = {
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 16,
    "tie_word_embeddings": False,
}
EXTRA["Glm4MoeForCausalLM"] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "norm_topk_prob": True,
    "first_k_dense_replace": 1,
}
EXTRA["Qwen3_5ForCausalLM"] = EXTRA["Qwen3_5ForConditionalGeneration"] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXTRA["DeepseekV3ForCausalLM"] = EXTRA["Glm4MoeForCausalLM"] | {
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_shared_experts": 1,
}
EXTRA["DeepseekV2ForCausalLM"] = {
    **EXTRA["DeepseekV3ForCausalLM"],
    "norm_topk_prob": False,
    "q_lora_rank": None,
    "topk_method": "greedy",
}
SHARED = {**EXPERTS, "shared_expert_intermediate_size": 16}
EXTRA["Qwen2MoeForCausalLM"] = SHARED
EXTRA["OlmoeForCausalLM"] = {**EXPERTS, "num_key_value_heads": 4}
EXTRA["Qwen3_5MoeForCausalLM"] = EXTRA["Qwen3_5ForCausalLM"] | SHARED
EXTRA["Qwen3_5MoeForConditionalGeneration"] = EXTRA["Qwen3_5MoeForCausalLM"]
EXTRA["ArceeForCausalLM"] = {"hidden_act": "relu2"}
EXTRA["Ernie4_5_MoeForCausalLM"] = {
    "moe_num_experts": 4,
    "moe_k": 2,
    "moe_intermediate_size": 16,
    "moe_num_shared_experts": 1,
    "moe_layer_start_index": 1,
}
EXTRA["Qwen3VLMoeForConditionalGeneration"] = EXTRA["Qwen3MoeForCausalLM"]
EXTRA["GraniteMoeForCausalLM"] = EXTRA["MixtralForCausalLM"]
EXTRA["GraniteMoeSharedForCausalLM"] = {
    **EXTRA["MixtralForCausalLM"],
    "shared_intermediate_size": 16,
}
EXTRA["GraniteMoeHybridForCausalLM"] = {
    "shared_intermediate_size": 16,
    "position_embedding_type": "rope",
}
EXTRA["Dots1ForCausalLM"] = {
    **EXTRA["Glm4MoeForCausalLM"],
    "n_shared_experts": 1,
    "num_key_value_heads": 4,
}
EXTRA["NemotronForCausalLM"] = {"norm_eps": 1e-5, "hidden_act": "relu2"}
NEXT = {**EXTRA["Qwen3_5ForCausalLM"], **SHARED, "norm_topk_prob": True}
EXTRA["Qwen3NextForCausalLM"] = NEXT
NORMED = {"layer_norm_eps": 1e-5}
EXTRA |= dict.fromkeys(("StableLmForCausalLM", "CohereForCausalLM", "Cohere2ForCausalLM"), NORMED)
EXTRA["GPTNeoXForCausalLM"] = {**NORMED, "hidden_act": "gelu"}
EXTRA["PhiForCausalLM"] = {**NORMED, "hidden_act": "gelu_new"}
GEMMA4 = {
    **GEMMA,
    "layer_types": ["sliding_attention", "full_attention"],
    "global_head_dim": 16,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}
EXTRA |= {name: GEMMA4 for name in CLASSES if name.startswith("Gemma4")}
CONFIGS = {name: {**LLAMA, **EXTRA.get(name, {})} for name in CLASSES}


def convert(name: str, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """GGUF keys without the architecture's prefix, and rotary tensors."""
    row = CLASSES[name]
    config = Config(Path("config.json"), {**row.defaults, **values})
    check_assumptions(config, row)
    keys = convert_hyperparameters(config, row)
    tensors = {n: t.read() for n, t in rope_tensors(config, row).items()}
    return {k.removeprefix(f"{row.name}."): v.decode() for k, v in keys.items()}, tensors


@pytest.mark.parametrize(
    ("name", "older", "newer"),
    [
        ("LlamaForCausalLM", {"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 5e5}}),
        (
            "LlamaForCausalLM",
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}},
        ),
        (
            "LlamaForCausalLM",
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}},
        ),
        (
            "Qwen2ForCausalLM",
            {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", **YARN}},
            {"rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn", **YARN}},
        ),
        (
            "Phi3ForCausalLM",
            {
                "rope_theta": 1e4,
                "rope_scaling": {"type": "su", **LONG},
                "original_max_position_embeddings": 64,
            },
            {
                "rope_parameters": {
                    "rope_theta": 1e4,
                    "rope_type": "longrope",
                    "original_max_position_embeddings": 64,
                    **LONG,
                }
            },
        ),
        (
            "Gemma3ForCausalLM",
            {
                "rope_theta": 1e6,
                "rope_local_base_freq": 1e4,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
            {
                "rope_parameters": {
                    "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
                    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
                }
            },
        ),
    ],
)
def test_older_and_newer_rotary_parameters_are_the_same(name, older, newer):
    base = {k: v for k, v in CONFIGS[name].items() if k != "rope_theta"}
    old_keys, old_tensors = convert(name, base | older)
    new_keys, new_tensors = convert(name, base | newer)
    assert old_keys == new_keys
    assert old_tensors.keys() == new_tensors.keys()
    for tensor, values in old_tensors.items():
        np.testing.assert_array_equal(values, new_tensors[tensor])


def test_llama3_factors_grow_from_1_to_the_factor():
    rope = {"rope_type": "llama3", **LLAMA3}
    _, tensors = convert("LlamaForCausalLM", {**LLAMA, "head_dim": 64, "rope_scaling": rope})
    factors = tensors["rope_freqs.weight"]
    assert factors.shape == (32,)
    assert factors[0] == 1
    assert factors[-1] == 8
    assert (np.diff(factors) >= 0).all()


def test_a_gemma_with_another_scale_is_refused():
    values = {**CONFIGS["Gemma3ForCausalLM"], "query_pre_attn_scalar": 256}
    with pytest.raises(UnsupportedModelError, match="query_pre_attn_scalar is 256"):
        convert("Gemma3ForCausalLM", values)


@pytest.mark.parametrize(
    ("name", "values", "named"),
    [
        ("Ernie4_5_MoeForCausalLM", {"moe_layer_interval": 2}, "some layers behind the first"),
        ("Exaone4ForCausalLM", {"sliding_window": 16}, "sliding_window is 16 in 2 layers"),
        ("Gemma4ForCausalLM", {"num_kv_shared_layers": 1}, "layers from 1 on share keys"),
        ("OlmoeForCausalLM", {"num_key_value_heads": 2}, "2 heads have keys, 4 queries"),
        ("DeepseekV2ForCausalLM", {"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'"),
    ],
)
def test_what_a_graph_computes_otherwise_is_refused(name, values, named):
    assert convert(name, CONFIGS[name])
    with pytest.raises(UnsupportedModelError, match=named):
        convert(name, {**CONFIGS[name], **values})


def test_gemma_4_says_of_layers_once_or_of_each():
    plain = convert("Gemma4ForCausalLM", CONFIGS["Gemma4ForCausalLM"])
    rows = {"1": {"head_dim": 16}}
    values = {**CONFIGS["Gemma4ForCausalLM"], "global_head_dim": None, "per_layer_config": rows}
    keys, tensors = convert("Gemma4ForCausalLM", values)
    assert (keys, tensors["rope_freqs.weight"].tolist()) == (
        plain[0],
        [1, 1] + [float(np.float32(1e30))] * 6,
    )
    assert (keys["attention.key_length"], keys["attention.key_length_swa"]) == (16, 8)
    rows["1"]["num_key_value_heads"] = 1
    assert convert("Gemma4ForCausalLM", values)[0]["attention.head_count_kv"] == [2, 1]


@pytest.mark.parametrize(
    "change", [{"layer_types": ["mamba", "attention"]}, {"num_local_experts": 4}]
)
def test_a_granite_4_with_more_than_attention_goes_to_the_converter(change):
    name = "GraniteMoeHybridForCausalLM"
    dense = {**CONFIGS[name], "architectures": [name], "layer_types": ["attention"] * 2}
    assert find_architecture(Config(Path("config.json"), dense)).name == "granite"
    with pytest.raises(UnknownClassError, match=r"llama\.cpp's own converter can"):
        find_architecture(Config(Path("config.json"), dense | change))


def test_a_plain_deepseek_has_no_latent_of_queries():
    keys, _ = convert("DeepseekV2ForCausalLM", CONFIGS["DeepseekV2ForCausalLM"])
    assert keys["attention.q_lora_rank"] == 0
    assert keys["expert_gating_func"] == 1  # softmax
    keys, _ = convert("DeepseekV3ForCausalLM", CONFIGS["DeepseekV3ForCausalLM"])
    assert (keys["attention.q_lora_rank"], keys["expert_gating_func"]) == (24, 2)


def test_yarn_with_other_ramps_is_refused():
    rope = {"rope_type": "yarn", **YARN, "beta_fast": 64}
    with pytest.raises(UnsupportedModelError, match="beta_fast 64"):
        convert("LlamaForCausalLM", {**LLAMA, "rope_scaling": rope})


@pytest.mark.parametrize(
    ("scales", "attention"),
    [
        ({}, None),  # llama.cpp's own, 0.1 ln 4 + 1
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        ({"mscale": 0.707, "mscale_all_dim": 1.0}, (0.0707 * LN4 + 1) / (0.1 * LN4 + 1)),
        ({"mscale": 2.0}, None),  # counts for nothing alone
        ({"mscale": 2.0, "mscale_all_dim": 0}, None),
        ({"mscale": 2.0, "mscale_all_dim": 1.0, "attention_factor": 1.5}, 1.5),
        ({"factor": None, "max_position_embeddings": 128, "attention_factor": 1.5}, 1.5),
        ({"factor": 1.0, "attention_factor": 1.5}, 1.5),
    ],
)
def test_yarn_scales_the_attention_as_transformers_does(scales, attention):
    context = scales.get("max_position_embeddings", 64)
    scales = {k: v for k, v in scales.items() if k != "max_position_embeddings"}
    rope = {"rope_type": "yarn", **YARN, **scales}
    values = {**LLAMA, "max_position_embeddings": context, "rope_scaling": rope}
    keys, _ = convert("LlamaForCausalLM", values)
    factor = keys["rope.scaling.factor"]
    assert factor == (scales.get("factor", 4.0) or 4.0)
    computed = keys.get("rope.scaling.attn_factor", 1.0) * (0.1 * math.log(factor) + 1)
    assert computed == pytest.approx(attention or 0.1 * LN4 + 1)


@pytest.mark.parametrize(
    ("rope", "named"),
    [
        ({"rope_type": "yarn", **YARN, "truncate": False}, "truncate is False"),
        ({"rope_type": "yarn", **YARN, "attn_factor": 2}, "attn_factor is 2"),
        ({"rope_type": "linear", "factor": 2.0, "attention_factor": 1.2}, "attention_factor is 1"),
        ({"rope_type": "default", "factor": 8.0}, "factor is 8.0 under rope_type default"),
        ({"rope_type": "llama3", **LLAMA3, "beta_fast": 32}, "beta_fast is 32"),
        ({"rope_type": "default", "mrope_section": [1, 2, 3]}, "mrope_section is"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"llama_4_scaling_beta": 0.1}, "llama_4_scaling_beta is 0.1"),
        ({"full_attention": {"rope_type": "default"}, "factor": 2.0}, "factor is 2.0"),
        (
            {"full_attention": {}, "sliding_attention": {"rope_type": "linear", "factor": 2.0}},
            "rope_type linear in layers with a sliding window",
        ),
    ],
)
def test_a_rotary_key_that_is_not_computed_is_named(rope, named):
    with pytest.raises(UnsupportedModelError, match=re.escape(named)):
        convert("LlamaForCausalLM", {**LLAMA, "rope_scaling": rope})
    if rope.get("partial_rotary_factor"):
        with pytest.raises(UnsupportedModelError, match=re.escape(named)):
            convert("LlamaForCausalLM", {**LLAMA, **rope})


@pytest.mark.parametrize("extra", [{"truncate": True}, {"finetuned": True}, {"attn_factor": 1}])
def test_rotary_keys_that_change_nothing(extra):
    rope = {"rope_type": "yarn", **YARN}
    plain = convert("LlamaForCausalLM", {**LLAMA, "rope_scaling": rope})
    assert convert("LlamaForCausalLM", {**LLAMA, "rope_scaling": {**rope, **extra}}) == plain


def test_llama3_scaling_needs_a_graph_that_loads_factors():
    rope = {"rope_type": "llama3", **LLAMA3}
    with pytest.raises(UnsupportedModelError, match="rope_type 'llama3' is not computed"):
        convert("Qwen2ForCausalLM", {**LLAMA, "rope_scaling": rope})


@pytest.mark.parametrize("name", CONFIGS)
def test_a_changed_config_gives_keys_or_one_line(name):
    scalings = [{"rope_type": "llama3", **LLAMA3}, {"rope_type": "yarn", **YARN}]
    scalings += [{"rope_type": "longrope", **LONG}, {"rope_type": "linear", "factor": 2.0}]
    for seed in range(4 * MUTATIONS):
        rng = random.Random(seed)
        values = {**CONFIGS[name], "rope_scaling": rng.choice(scalings)}
        assert "\n" not in outcome(name, mutate(rng, mutate(rng, values)))


def outcome(name: str, values: Any) -> str:
    """The number of GGUF keys, or why there are none."""
    try:
        return str(len(convert(name, values)[0])) if isinstance(values, dict) else ""
    except TqggufError as error:
        return str(error)
