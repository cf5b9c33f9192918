"""Small random models of every architecture with a forward pass, and real llama.cpp to run them."""

from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import xllamacpp

from tqgguf.models.gguf import read_gguf

N_VOCAB = 48


@dataclass(frozen=True)
class Recipe:
    """What a small model is made of."""

    arch: str
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    ffn: int = 96
    layers: int = 2
    biases: tuple[str, ...] = ()
    qk_norm: bool = False
    tied: bool = False
    experts: int = 0
    shared_expert: bool = False
    layer_norm: bool = False
    gated: bool = True
    fused_qkv: bool = False
    positions: bool = False
    rope_freqs: bool = False
    rows: int = N_VOCAB  # of the embedding and the head
    keys: dict = field(default_factory=dict)


RECIPES = {
    "llama": Recipe("llama"),
    "llama-tied-llama3-rope": Recipe("llama", tied=True, rope_freqs=True),
    "llama-linear-rope": Recipe(
        "llama", keys={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    ),
    "llama-yarn": Recipe(
        "llama",
        keys={
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 16,
        },
    ),
    "llama-moe": Recipe("llama", experts=4),
    "granite": Recipe(
        "granite",
        keys={
            "embedding_scale": 3.0,
            "residual_scale": 0.3,
            "attention.scale": 0.2,
            "logit_scale": 2.0,
        },
    ),
    "qwen2": Recipe("qwen2", biases=("attn_q", "attn_k", "attn_v")),
    "qwen2moe": Recipe(
        "qwen2moe", biases=("attn_q", "attn_k", "attn_v"), experts=4, shared_expert=True
    ),
    "qwen3": Recipe("qwen3", qk_norm=True, head_dim=32, tied=True),
    "qwen3moe": Recipe("qwen3moe", qk_norm=True, experts=4),
    "gpt2": Recipe(
        "gpt2",
        kv_heads=4,
        layer_norm=True,
        gated=False,
        fused_qkv=True,
        positions=True,
        tied=True,
        biases=("attn_qkv", "attn_output", "ffn_up", "ffn_down"),
    ),
    "starcoder2": Recipe(
        "starcoder2",
        layer_norm=True,
        gated=False,
        biases=("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"),
    ),
}


def write_model(path: Path, recipe: Recipe, seed: int = 0) -> Path:
    """A random model whose every tensor matters to its output."""
    writer = gguf.GGUFWriter(path, recipe.arch)
    _keys(writer, recipe)
    rng = np.random.default_rng(seed)
    for name, shape in _shapes(recipe).items():
        writer.add_tensor(name, _values(rng, name, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _keys(writer: gguf.GGUFWriter, recipe: Recipe) -> None:
    writer.add_context_length(64)
    writer.add_embedding_length(recipe.hidden)
    writer.add_block_count(recipe.layers)
    writer.add_feed_forward_length(recipe.ffn)
    writer.add_head_count(recipe.heads)
    writer.add_head_count_kv(recipe.kv_heads)
    writer.add_key_length(recipe.head_dim)
    writer.add_value_length(recipe.head_dim)
    if not recipe.positions:
        writer.add_rope_dimension_count(recipe.head_dim)
        writer.add_rope_freq_base(1000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    if recipe.experts:
        writer.add_expert_count(recipe.experts)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(recipe.ffn)
    for key, value in recipe.keys.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        add[type(value)](f"{recipe.arch}.{key}", value)
    _tokenizer(writer)


def _tokenizer(writer: gguf.GGUFWriter) -> None:
    special = ["<unk>", "<s>", "</s>"]
    pieces = ["▁", *(chr(c) for c in range(ord("a"), ord("z") + 1))]
    pieces += [f"▁{c}" for c in "abcdefghijklmnopqr"]
    tokens = special + pieces[: N_VOCAB - 3]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(N_VOCAB)])
    writer.add_token_types([2, 3, 3] + [1] * (N_VOCAB - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _shapes(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (recipe.rows, recipe.hidden)}
    if recipe.positions:
        shapes["position_embd.weight"] = (64, recipe.hidden)
    if recipe.rope_freqs:
        shapes["rope_freqs.weight"] = (recipe.head_dim // 2,)
    for index in range(recipe.layers):
        for name, shape in {**_attention(recipe), **_feed_forward(recipe)}.items():
            shapes[f"blk.{index}.{name}.weight"] = shape
            biased = name in recipe.biases or (recipe.layer_norm and name.endswith("norm"))
            if biased:
                shapes[f"blk.{index}.{name}.bias"] = shape[:1]
    shapes["output_norm.weight"] = (recipe.hidden,)
    if recipe.layer_norm:
        shapes["output_norm.bias"] = (recipe.hidden,)
    if not recipe.tied:
        shapes["output.weight"] = (recipe.rows, recipe.hidden)
    return shapes


def _attention(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    q, kv = recipe.heads * recipe.head_dim, recipe.kv_heads * recipe.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (recipe.hidden,),
        "attn_output": (recipe.hidden, q),
    }
    if recipe.fused_qkv:
        shapes["attn_qkv"] = (q + 2 * kv, recipe.hidden)
    else:
        shapes |= {"attn_q": (q, recipe.hidden), "attn_k": (kv, recipe.hidden)}
        shapes["attn_v"] = (kv, recipe.hidden)
    if recipe.qk_norm:
        shapes |= {"attn_q_norm": (recipe.head_dim,), "attn_k_norm": (recipe.head_dim,)}
    return shapes


def _feed_forward(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    hidden, ffn, experts = recipe.hidden, recipe.ffn, recipe.experts
    shapes: dict[str, tuple[int, ...]] = {"ffn_norm": (hidden,)}
    matrices = {"ffn_up": (ffn, hidden), "ffn_down": (hidden, ffn)}
    if recipe.gated:
        matrices["ffn_gate"] = (ffn, hidden)
    if not experts:
        return shapes | matrices
    shapes["ffn_gate_inp"] = (experts, hidden)
    shapes |= {f"{name}_exps": (experts, *shape) for name, shape in matrices.items()}
    if recipe.shared_expert:
        shapes |= {f"{name}_shexp": shape for name, shape in matrices.items()}
        shapes["ffn_gate_inp_shexp"] = (hidden,)
    return shapes


def _values(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name == "rope_freqs.weight":
        return np.linspace(1, 4, shape[0]).astype(np.float32)
    noise = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("norm.weight"):
        return np.exp(noise / 4)
    if name.endswith(".bias"):
        return noise / 4
    if name.startswith(("token_embd", "position_embd")):
        return noise / 4  # serves as the head of tied models: logits of a few units
    return noise / np.sqrt(np.float32(shape[-1]))


def llama_cpp_steps(path: Path, prompt: list[int], n_new: int) -> tuple[list[int], np.ndarray]:
    """What real llama.cpp generates greedily, and its log-probabilities of the whole vocabulary.

    -> the n_new generated ids, and (n_new, n_vocab) float64: row i is the distribution after
    prompt + ids[:i].
    """
    n_vocab = read_gguf(path).tensors["token_embd.weight"].n_rows
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 64
    params.warmup = False
    params.cpuparams.n_threads = 1
    answer = xllamacpp.Server(params).handle_completions(
        {"prompt": prompt, "max_tokens": n_new, "temperature": 0, "logprobs": n_vocab}
        | {"ignore_eos": True, "n_probs": n_vocab}
    )
    rows = answer["choices"][0]["logprobs"]["content"]
    table = np.full((len(rows), n_vocab), -np.inf)
    for row, content in zip(table, rows, strict=True):
        for entry in content["top_logprobs"]:
            row[entry["id"]] = entry["logprob"]
    return [content["id"] for content in rows], table
