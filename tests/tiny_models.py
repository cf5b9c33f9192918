"""Tiny random models of every architecture: a GGUF file that llama.cpp runs, made in a moment.

A model is a text, one line per tensor of a layer: its name, its shape in NumPy's order written
with the letters of `SIZES`, and `b` where it has a bias. Gains are far from 1, some channels are
outliers and no bias is zero, so that a fold that forgets any of them changes the result.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import gguf
import numpy as np

from tqgguf.models.gguf import read_gguf
from tqgguf.models.metadata import Value, encode

DATA = Path(__file__).parent / "data"
NOVELS = DATA / "novels-5m-f16.gguf"
# D width, F feed-forward, Q query rows, K key and value rows, H head, R half of it, E experts,
# C context, V vocabulary
SIZES = {"D": 64, "F": 96, "Q": 64, "K": 32, "H": 16, "R": 8, "E": 4, "C": 256, "V": 2048}
ODD = {"D": 96, "Q": 96, "K": 48, "H": 24, "R": 12}  # a width of 3 x 32
HEAD = "output V D"
OUTSIDE = "token_embd V D; output_norm D; output V D"

_LLAMA = """
    attn_norm D
    attn_q Q D
    attn_k K D
    attn_v K D
    attn_output D Q
    ffn_norm D
    ffn_gate F D
    ffn_up F D
    ffn_down D F
"""
_SPLIT = ("attn_q", "attn_k", "attn_v")
_BIASED_QKV = ("attn_q Q D b", "attn_k K D b", "attn_v K D b")
_QK_NORMS = ("attn_q_norm H", "attn_k_norm H")
_DENSE = ("ffn_gate", "ffn_up", "ffn_down")
_EXPERTS = ("ffn_gate_inp E D", "ffn_gate_exps E F D", "ffn_up_exps E F D", "ffn_down_exps E D F")
_SHARED = ("ffn_gate_shexp F D", "ffn_up_shexp F D", "ffn_down_shexp D F")
_POST_NORMS = ("post_attention_norm D", "post_ffw_norm D")
_GPT2 = """
    attn_norm D b
    attn_qkv Q+K+K D b
    attn_output D Q b
    ffn_norm D b
    ffn_up F D b
    ffn_down D F b
"""
_LAYER_OUTSIDE = OUTSIDE.replace("output_norm D", "output_norm D b")
_MOE = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 96}
_GRANITE = {"embedding_scale": 3.0, "residual_scale": 0.3, "attention.scale": 0.2}


@dataclass(frozen=True)
class Tiny:
    """What a tiny model is made of: its layers' tensors, those outside, and metadata.

    first is the first layer, where it differs from the others; mha gives every query head its own
    key and value head.
    """

    arch: str
    layer: str
    outside: str = OUTSIDE
    keys: Mapping[str, object] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    first: str = ""
    mha: bool = False

    def size(self, letter: str) -> int:
        """What a letter, a number or a sum of them in a shape stands for."""
        sizes = {**SIZES, **self.sizes}
        if self.mha:
            sizes["K"] = sizes["Q"]
        return sum(int(x) if x.isdigit() else sizes[x] for x in letter.split("+"))


def _change(layer: str, *changes: str, without: tuple[str, ...] = ()) -> str:
    """Lines of `layer` replaced by the changed line of the same name; new names are appended."""
    lines = {line.split()[0]: line for line in layer.strip().splitlines()}
    lines |= {change.split()[0]: change for change in changes}
    return "\n".join(line for name, line in lines.items() if name not in without)


def _rows() -> dict[str, Tiny]:
    mixture = _change(_LLAMA, *_EXPERTS, without=_DENSE)
    misnamed = _change(_LLAMA, "post_attention_norm D", without=("ffn_norm",))
    parallel = _change(_LLAMA, without=("ffn_norm",))
    shared = {**_MOE, "expert_shared_count": 1, "leading_dense_block_count": 1}
    shared |= {"expert_weights_scale": 1.5}
    post_normed = _change(_LLAMA, *_POST_NORMS)
    headless = OUTSIDE.replace(HEAD, "")
    stablelm = _change(_LLAMA, "attn_norm D b", "ffn_norm D b")
    mla = {"attention.kv_lora_rank": 32, "attention.q_lora_rank": 48, "expert_shared_count": 1}
    mla |= {"attention.key_length_mla": 24, "attention.value_length_mla": 16, **_MOE}
    mla |= {"attention.key_length": 40, "attention.value_length": 32, "attention.head_count_kv": 1}
    mla |= {"leading_dense_block_count": 1, "rope.dimension_count": 8, "expert_weights_scale": 1.5}
    latent = ("attn_kv_a_mqa 40 D", "attn_kv_a_norm 32", "attn_k_b 4 32 16", "attn_v_b 4 16 32")
    latent += ("attn_output D 64",)
    lite = (*latent, "attn_q 96 D")
    gated = _change(misnamed, "attn_q Q+Q D", *_QK_NORMS)
    linear = _change(
        misnamed,
        *("attn_qkv 96 D", "attn_gate 64 D", "ssm_conv1d 96 4", "ssm_dt 4 b", "ssm_a 4"),
        *("ssm_beta 4 D", "ssm_alpha 4 D", "ssm_norm 16", "ssm_out D 64"),
        without=(*_SPLIT, "attn_output"),
    )
    mixed = (*_EXPERTS, *_SHARED, "ffn_gate_inp_shexp D")
    by_key = ("attn_qkv 128 D", "ssm_conv1d 128 4", "ssm_ba 8 D")
    delta = {"rope.dimension_sections": [4, 4, 0, 0], "full_attention_interval": 2}
    delta |= {"ssm.conv_kernel": 4, "ssm.inner_size": 64, "ssm.state_size": 16}
    delta |= {"ssm.time_step_rank": 4, "ssm.group_count": 1}
    latent += ("attn_q_a 48 D", "attn_q_a_norm 48", "attn_q_b 96 48")
    return {
        "llama": Tiny("llama", _LLAMA),
        "llama-biased": Tiny(
            "llama",
            _change(
                _LLAMA,
                *(*_BIASED_QKV, "attn_output D Q b"),
                *("ffn_gate F D b", "ffn_up F D b", "ffn_down D F b"),
            ),
            outside=f"{OUTSIDE}; rope_freqs R",
        ),
        "llama-moe": Tiny("llama", mixture, keys=_MOE),
        "mistral3": Tiny(
            "mistral3",
            _LLAMA,
            keys={
                "attention.temperature_scale": 0.1,
                "rope.scaling.original_context_length": 32,
            },
        ),
        "granite": Tiny("granite", _LLAMA, keys={**_GRANITE, "logit_scale": 2.0}),
        "granitemoe": Tiny("granitemoe", mixture, keys={**_GRANITE, "logit_scale": 2.0, **_MOE}),
        "smollm3": Tiny("smollm3", _LLAMA),
        "seed_oss": Tiny("seed_oss", _change(misnamed, *_BIASED_QKV)),
        "exaone": Tiny("exaone", _LLAMA),
        "internlm2": Tiny("internlm2", _LLAMA),
        "ernie4_5": Tiny("ernie4_5", _change(_LLAMA, "attn_output D Q")),
        "ernie4_5-moe": Tiny(
            "ernie4_5-moe",
            _change(mixture, *_SHARED, "exp_probs_b E b"),
            first=_LLAMA,
            keys={**shared, "interleave_moe_layer_step": 1}
            | {"expert_shared_feed_forward_length": 96},
        ),
        "arcee": Tiny("arcee", _change(_LLAMA, without=("ffn_gate",))),
        "apertus": Tiny(
            "apertus",
            _change(_LLAMA, *_QK_NORMS, without=("ffn_gate",)),
            keys={
                "xielu.alpha_n": 0.8,
                "xielu.alpha_p": 0.6,
                "xielu.beta": 0.5,
                "xielu.eps": -1e-6,
            },
        ),
        "qwen": Tiny(
            "qwen",
            _change(
                _LLAMA,
                *("attn_qkv Q+K+K D b", "ffn_gate 48 D", "ffn_up 48 D", "ffn_down D 48"),
                without=_SPLIT,
            ),
            mha=True,
        ),
        "qwen2": Tiny("qwen2", _change(_LLAMA, *_BIASED_QKV)),
        "qwen2moe": Tiny(
            "qwen2moe",
            _change(mixture, *_BIASED_QKV, *_SHARED, "ffn_gate_inp_shexp D"),
            keys={**_MOE, "expert_shared_feed_forward_length": 96},
        ),
        "qwen3": Tiny("qwen3", _change(_LLAMA, *_QK_NORMS)),
        "qwen3vlmoe": Tiny(
            "qwen3vlmoe",
            _change(mixture, *_QK_NORMS),
            keys={**_MOE, "rope.dimension_sections": [4, 4, 0, 0]},
        ),
        "qwen3moe": Tiny("qwen3moe", _change(mixture, *_QK_NORMS), keys=_MOE),
        "olmoe": Tiny(
            "olmoe",
            _change(mixture, "attn_q_norm Q", "attn_k_norm K"),
            keys=_MOE,
            mha=True,
        ),
        "dots1": Tiny(
            "dots1",
            _change(
                _change(mixture, *_SHARED, *_QK_NORMS),
                "attn_k Q D",
                "attn_v Q D",
                "exp_probs_b E b",
            ),
            first=_change(_LLAMA, *_QK_NORMS, "attn_k Q D", "attn_v Q D"),
            keys={**shared, "expert_gating_func": 2},
            mha=True,
        ),
        "bailingmoe2": Tiny(
            "bailingmoe2",
            _change(mixture, *_SHARED, *_QK_NORMS, "attn_qkv Q+K+K D", without=_SPLIT),
            first=_change(_LLAMA, *_QK_NORMS, "attn_qkv Q+K+K D", without=_SPLIT),
            keys={**shared, "expert_gating_func": 2},
        ),
        "deepseek": Tiny("deepseek", _change(mixture, *_SHARED), first=_LLAMA, keys=shared),
        "glm4moe": Tiny(
            "glm4moe",
            _change(
                mixture,
                *(*_SHARED, *_BIASED_QKV, "post_attention_norm D", "exp_probs_b E b"),
                without=("ffn_norm",),
            ),
            first=_change(misnamed, *_BIASED_QKV),
            keys={**shared, "expert_gating_func": 2},
        ),
        "gpt-oss": Tiny(
            "gpt-oss",
            _change(
                mixture,
                *(*_BIASED_QKV, "attn_output D Q b", "post_attention_norm D", "attn_sinks 4"),
                *(f"{line} b" for line in _EXPERTS),
                without=("ffn_norm",),
            ),
            keys={**_MOE, "attention.sliding_window": 32},
        ),
        "qwen35": Tiny("qwen35", gated, first=linear, keys=delta),
        "qwen35moe": Tiny(
            "qwen35moe",
            _change(gated, *mixed, without=_DENSE),
            first=_change(linear, *mixed, without=_DENSE),
            keys={**delta, **_MOE, "expert_shared_feed_forward_length": 96},
        ),
        "qwen3next": Tiny(
            "qwen3next",
            _change(gated, *mixed, without=_DENSE),
            first=_change(linear, *mixed, *by_key, without=("ssm_beta", "ssm_alpha", *_DENSE)),
            keys={**delta, **_MOE, "expert_shared_feed_forward_length": 96, "ssm.group_count": 2},
        ),
        "qwen3next-joined": Tiny(
            "qwen3next",
            _change(gated, *mixed, without=_DENSE),
            first=_change(
                linear,
                *(*mixed, *by_key, "ssm_in 192 D"),
                without=("ssm_beta", "ssm_alpha", "attn_qkv", "attn_gate", *_DENSE),
            ),
            keys={**delta, **_MOE, "expert_shared_feed_forward_length": 96, "ssm.group_count": 2},
        ),
        "phimoe": Tiny(
            "phimoe",
            _change(mixture, *_BIASED_QKV, "attn_norm D b", "ffn_norm D b", "attn_output D Q b"),
            outside=_LAYER_OUTSIDE.replace(HEAD, f"{HEAD} b"),
            keys=_MOE,
        ),
        "phi3": Tiny(
            "phi3",
            _change(
                _LLAMA,
                *("attn_qkv Q+K+K D", "ffn_up F+F D"),
                without=(*_SPLIT, "ffn_gate"),
            ),
            outside=f"{OUTSIDE}; rope_factors_long R; rope_factors_short R",
        ),
        "deepseek2": Tiny(
            "deepseek2",
            _change(mixture, *latent, *_SHARED, "exp_probs_b E b", without=_SPLIT),
            first=_change(_LLAMA, *latent, without=_SPLIT),
            keys=mla,
        ),
        "deepseek2-lite": Tiny(
            "deepseek2",
            _change(mixture, *lite, *_SHARED, without=("attn_k", "attn_v")),
            keys={**mla, "leading_dense_block_count": 0, "attention.q_lora_rank": 0},
        ),
        "olmo": Tiny(
            "olmo",
            _change(_LLAMA, without=("attn_norm", "ffn_norm")),
            outside=OUTSIDE.replace("output_norm D;", ""),
        ),
        "stablelm": Tiny("stablelm", stablelm, outside=_LAYER_OUTSIDE),
        "stablelm-parallel": Tiny(
            "stablelm",
            _change(stablelm, "attn_q_norm 4 H", "attn_k_norm 2 H", without=("ffn_norm",)),
            outside=_LAYER_OUTSIDE,
        ),
        "starcoder2": Tiny(
            "starcoder2",
            _change(_GPT2, *_BIASED_QKV, without=("attn_qkv",)),
            outside=_LAYER_OUTSIDE,
        ),
        "gpt2": Tiny("gpt2", _GPT2, outside=f"{_LAYER_OUTSIDE}; position_embd C D"),
        "starcoder": Tiny("starcoder", _GPT2, outside=f"{_LAYER_OUTSIDE}; position_embd C D"),
        "nemotron": Tiny(
            "nemotron", _change(_GPT2, *_BIASED_QKV, without=("attn_qkv",)), outside=_LAYER_OUTSIDE
        ),
        "gptneox": Tiny(
            "gptneox", _GPT2, outside=_LAYER_OUTSIDE, keys={"use_parallel_residual": True}
        ),
        "gptneox-sequential": Tiny(
            "gptneox", _GPT2, outside=_LAYER_OUTSIDE, keys={"use_parallel_residual": False}
        ),
        "falcon": Tiny("falcon", _falcon(), outside=_LAYER_OUTSIDE),
        "falcon-40b": Tiny("falcon", _falcon("attn_norm_2 D b"), outside=_LAYER_OUTSIDE),
        "phi2": Tiny(
            "phi2",
            _change(_GPT2, without=("ffn_norm",)),
            outside=_LAYER_OUTSIDE.replace(HEAD, f"{HEAD} b"),
        ),
        "mpt": Tiny(
            "mpt",
            _change(_GPT2, "attn_norm D", "ffn_norm D", "attn_qkv Q+K+K D", "ffn_up F D"),
            keys={"attention.max_alibi_bias": 8.0},
        ),
        "bloom": Tiny("bloom", _GPT2, outside=f"{_LAYER_OUTSIDE}; token_embd_norm D b"),
        "gemma": Tiny("gemma", _LLAMA, outside=headless),
        "command-r": Tiny("command-r", parallel, outside=headless, keys={"logit_scale": 0.5}),
        "cohere2": Tiny(
            "cohere2",
            parallel,
            outside=headless,
            keys={"logit_scale": 0.5, "attention.sliding_window": 32},
        ),
        "qwen2vl": Tiny(
            "qwen2vl",
            _change(_LLAMA, *_BIASED_QKV),
            # llama.cpp does not read the key and takes no epsilon at all
            keys={
                "rope.dimension_sections": [4, 4, 0, 0],
                "attention.layer_norm_rms_epsilon": 1e-12,
            },
        ),
        "qwen3vl": Tiny(
            "qwen3vl",
            _change(_LLAMA, *_QK_NORMS),
            keys={"rope.dimension_sections": [4, 4, 0, 0]},
        ),
        "gemma2": Tiny(
            "gemma2",
            post_normed,
            outside=headless,
            keys={
                "attention.sliding_window": 32,
                "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0,
            },
        ),
        "gemma3": Tiny("gemma3", _change(post_normed, *_QK_NORMS), outside=headless),
        "olmo2": Tiny(
            "olmo2",
            _change(
                post_normed, "attn_q_norm Q", "attn_k_norm K", without=("attn_norm", "ffn_norm")
            ),
        ),
        "glm4": Tiny("glm4", _change(post_normed, "ffn_up F+F D", without=("ffn_gate",))),
        "exaone4": Tiny(
            "exaone4", _change(post_normed, *_QK_NORMS, without=("attn_norm", "ffn_norm"))
        ),
    }


def _falcon(*extra: str) -> str:
    plain = ("attn_qkv Q+K+K D", "attn_output D Q", "ffn_up F D", "ffn_down D F")
    return _change(_GPT2, *plain, *extra, without=("ffn_norm",))


TINY = _rows()


def write_tiny(
    path: Path,
    name: str | Tiny,
    *,
    tied: bool = False,
    layers: int = 2,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    words: bool = True,
) -> Path:
    """Write the tiny model `name` of TINY in F32; sizes overrides SIZES, tied drops the head.

    words: with a vocabulary, which llama.cpp takes longer to read than all else.
    """
    model = TINY[name] if isinstance(name, str) else name
    model = replace(model, sizes={**model.sizes, **(sizes or {})})
    outside = model.outside.replace(HEAD, "") if tied else model.outside
    if outside == model.outside and tied:
        raise ValueError(f"{name} has no head to drop")
    writer = _Writer(path, model.arch)
    _write_keys(writer, model, layers, words)
    rng = np.random.default_rng(seed)
    shapes = _shapes(outside, "", model)
    for index in range(layers):
        layer = model.first if model.first and index == 0 else model.layer
        shapes |= _shapes(layer, f"blk.{index}.", model)
    for tensor, shape in shapes.items():
        writer.add_tensor(tensor, _values(rng, tensor, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_tensors(path: Path, source: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """A copy of `source` with other tensors, in F32."""
    model = read_gguf(source)
    writer = _Writer(path, model.architecture)
    for key, value in model.metadata.items():
        if key != "general.architecture":
            writer.add_key_value(key, value, value.type)
    for name, values in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_shallow(path: Path) -> Path:
    """The first two of the trained model's six layers, in its types."""
    model = read_gguf(NOVELS)
    writer = _Writer(path, model.architecture)
    count = f"{model.architecture}.block_count"
    for key, value in (model.metadata | {count: encode(2)}).items():
        if key != "general.architecture":
            writer.add_key_value(key, value, value.type)
    for name, tensor in model.tensors.items():
        if not re.match(r"blk\.[2-9]", name):
            values = tensor.stored(0, tensor.n_rows).view({"F16": "<f2", "F32": "<f4"}[tensor.type])
            writer.add_tensor(name, values.reshape(tensor.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_twin(path: Path) -> Path:
    """The trained model with outliers: the same function, and one channel in forty of every norm
    weak in the gain and strong in the columns of what reads it.
    """
    rng = np.random.default_rng(5)
    tensors = {name: t.read() for name, t in read_gguf(NOVELS).tensors.items()}
    readers = {"attn_norm": ("attn_q", "attn_k", "attn_v"), "ffn_norm": ("ffn_gate", "ffn_up")}
    for name in [n for n in tensors if n.startswith("blk.") and "norm" in n]:
        layer, norm = name.split(".")[1:3]
        factors = np.ones(256, np.float32)
        factors[rng.choice(256, 6, replace=False)] = rng.uniform(8, 30, 6)
        tensors[name] = tensors[name] / factors
        for reader in readers[norm]:
            tensors[f"blk.{layer}.{reader}.weight"] *= factors
    return write_tensors(path, NOVELS, tensors)


class _Writer(gguf.GGUFWriter):
    """Writes a `Value` as the bytes that it is: packing thousands of tokens takes longer than all
    else that is done with a tiny model.
    """

    def _pack_val(self, val, vtype, add_vtype, sub_type=None):
        if isinstance(val, Value):
            return self._pack("I", vtype) + val.raw
        return super()._pack_val(val, vtype, add_vtype, sub_type)


def _write_keys(writer: gguf.GGUFWriter, model: Tiny, layers: int, words: bool) -> None:
    head = model.size("H")
    keys = {
        "context_length": model.size("C"),
        "embedding_length": model.size("D"),
        "block_count": layers,
        "feed_forward_length": model.size("F"),
        "attention.head_count": model.size("Q") // head,
        "attention.head_count_kv": model.size("K") // head,
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
        "rope.dimension_count": head,
        "rope.freq_base": 10000.0,
    }
    add = {str: writer.add_string, bool: writer.add_bool}
    add |= {int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
    for key, value in {**keys, **model.keys}.items():
        prefix = "" if key.startswith("xielu.") else f"{model.arch}."
        add[type(value)](f"{prefix}{key}", value)
    tokenizer = _tokenizer() if words else {"tokenizer.ggml.model": encode("none")}
    for key, value in tokenizer.items():
        writer.add_key_value(key, value, value.type)
    if not words:
        writer.add_vocab_size(model.size("V"))


@cache
def _tokenizer() -> dict[str, Value]:
    metadata = read_gguf(NOVELS).metadata
    return {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}


def _shapes(lines: str, prefix: str, model: Tiny) -> dict[str, tuple[int, ...]]:
    """The tensors that lines such as `attn_q Q D b` describe."""
    shapes = {}
    for line in filter(None, (part.strip() for part in re.split(r"[;\n]", lines))):
        name, *letters = line.split()
        shape = tuple(model.size(letter) for letter in letters if letter != "b")
        if name == "ssm_a":
            shapes[f"{prefix}{name}"] = shape
        elif name not in ("exp_probs_b", "ssm_dt"):  # a bias without a weight
            shapes[f"{prefix}{name}.weight"] = shape
        if "b" in letters:
            shapes[f"{prefix}{name}.bias"] = shape[:-1] or shape
    return shapes


def _values(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("ssm_a"):
        return -np.exp(noise)  # a decay
    if name.endswith(".bias"):
        return noise / 2
    if "norm" in name:
        gain = np.exp(noise / 2)
        gain[..., 1 :: shape[-1] // 4] *= 6
        return gain
    if "rope" in name:
        return np.linspace(1, 4, shape[0], dtype=np.float32)
    if "ffn_up" in name:
        noise[..., 3::16, :] /= 20  # weak channels, which the balance of the FFN makes strong
    if name.startswith("token_embd"):
        noise[:, 3 :: shape[-1] // 2] *= 8  # outlier channels of the residual stream
    return noise / np.float32(shape[-1]) ** 0.5
