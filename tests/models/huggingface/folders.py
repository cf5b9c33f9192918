"""Small random models written in Hugging Face's layout, without torch."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.tiny_models import DATA

NOVELS = DATA / "novels-5m"
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llama_weights(config: Mapping[str, Any] = LLAMA, seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 weights of a Llama model under Hugging Face's names."""
    rng = np.random.default_rng(seed)
    width, ff = config["hidden_size"], config["intermediate_size"]
    kv = width // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], width)}
    for i in range(config["num_hidden_layers"]):
        shapes |= {
            f"model.layers.{i}.input_layernorm.weight": (width,),
            f"model.layers.{i}.self_attn.q_proj.weight": (width, width),
            f"model.layers.{i}.self_attn.k_proj.weight": (kv, width),
            f"model.layers.{i}.self_attn.v_proj.weight": (kv, width),
            f"model.layers.{i}.self_attn.o_proj.weight": (width, width),
            f"model.layers.{i}.post_attention_layernorm.weight": (width,),
            f"model.layers.{i}.mlp.gate_proj.weight": (ff, width),
            f"model.layers.{i}.mlp.up_proj.weight": (ff, width),
            f"model.layers.{i}.mlp.down_proj.weight": (width, ff),
        }
    shapes["model.norm.weight"] = (width,)
    return {name: rng.standard_normal(shape, np.float32) / 4 for name, shape in shapes.items()}


def write_folder(
    folder: Path,
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a folder with novels-5m's tokenizer; by default a small Llama model."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**LLAMA, **(config or {})}
    save_file(
        dict(llama_weights(config) if weights is None else weights), folder / "model.safetensors"
    )
    write_json(folder / "config.json", {k: v for k, v in config.items() if v is not ...})
    for file in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(NOVELS / file, folder)
    return folder


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(value), "utf-8")
