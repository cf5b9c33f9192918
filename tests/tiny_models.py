"""Tiny random models of every architecture: a GGUF file that llama.cpp runs, made in a moment.

A model is a text, one line per tensor of a layer: its name, its shape in NumPy's order written
with the letters of `SIZES`, and `b` where it has a bias. Gains are far from 1, some channels are
outliers and no bias is zero, so that a fold that forgets any of them changes the result.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import gguf
import numpy as np

from tqgguf.models.gguf import read_gguf

DATA = Path(__file__).parent / "data"
SIZES = {"D": 64, "F": 96, "Q": 64, "K": 32, "H": 16, "E": 4, "C": 256, "V": 2048}  # see below
# D width, F feed-forward, Q query rows, K key and value rows, H head, E experts, C context
HEAD = "output V D"

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


@dataclass(frozen=True)
class Tiny:
    """What a tiny model is made of: its layers' tensors, those outside, and metadata."""

    arch: str
    layer: str
    outside: str = "token_embd V D; output_norm D; output V D"
    keys: Mapping[str, object] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    def size(self, letter: str) -> int:
        """The number that a letter in a shape stands for; a number stands for itself."""
        return int(letter) if letter.isdigit() else {**SIZES, **self.sizes}[letter]


def _change(layer: str, *changes: str) -> str:
    """Lines of `layer` replaced by the changed line of the same name; new names are appended."""
    lines = {line.split()[0]: line for line in layer.strip().splitlines()}
    lines |= {change.split()[0]: change for change in changes}
    return "\n".join(lines.values())


TINY = {
    "llama": Tiny("llama", _LLAMA),
    "qwen2": Tiny("qwen2", _change(_LLAMA, "attn_q Q D b", "attn_k K D b", "attn_v K D b")),
    "qwen3": Tiny("qwen3", _change(_LLAMA, "attn_q_norm H", "attn_k_norm H")),
}


def write_tiny(
    path: Path,
    name: str,
    *,
    tied: bool = False,
    layers: int = 2,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
) -> Path:
    """Write the tiny model `name` of TINY in F32; sizes overrides SIZES, tied drops the head."""
    model = TINY[name]
    model = Tiny(
        model.arch, model.layer, model.outside, model.keys, {**model.sizes, **(sizes or {})}
    )
    outside = model.outside.replace(HEAD, "") if tied else model.outside
    writer = gguf.GGUFWriter(path, model.arch)
    _write_keys(writer, model, layers)
    rng = np.random.default_rng(seed)
    shapes = _shapes(outside, "", model)
    for index in range(layers):
        shapes |= _shapes(model.layer, f"blk.{index}.", model)
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
    writer = gguf.GGUFWriter(path, model.architecture)
    for key in model.metadata:
        if key != "general.architecture":
            _add_raw(writer, model, key)
    for name, values in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_raw(writer: gguf.GGUFWriter, model, key: str) -> None:
    value, type = model.get(key), model.metadata[key].type
    item = None
    if type == gguf.GGUFValueType.ARRAY:
        item = gguf.GGUFValueType(int.from_bytes(model.metadata[key].raw[:4], "little"))
    writer.add_key_value(key, value, type, sub_type=item)


def _write_keys(writer: gguf.GGUFWriter, model: Tiny, layers: int) -> None:
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
        add[type(value)](f"{model.arch}.{key}", value)
    for key, value in _tokenizer():
        writer.add_key_value(key, *value)


@cache
def _tokenizer() -> list[tuple[str, tuple]]:
    model = read_gguf(DATA / "novels-5m-f16.gguf")
    pairs = []
    for key, value in model.metadata.items():
        if key.startswith("tokenizer."):
            is_array = value.type == gguf.GGUFValueType.ARRAY
            item = gguf.GGUFValueType(int.from_bytes(value.raw[:4], "little")) if is_array else None
            pairs.append((key, (model.get(key), value.type, item)))
    return pairs


def _shapes(lines: str, prefix: str, model: Tiny) -> dict[str, tuple[int, ...]]:
    """The tensors that lines such as `attn_q Q D b` describe."""
    shapes = {}
    for line in filter(None, (part.strip() for part in re.split(r"[;\n]", lines))):
        name, *letters = line.split()
        shape = tuple(model.size(letter) for letter in letters if letter != "b")
        shapes[f"{prefix}{name}.weight"] = shape
        if "b" in letters:
            shapes[f"{prefix}{name}.bias"] = shape[:-1] or shape
    return shapes


def _values(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = rng.standard_normal(shape).astype(np.float32)
    if name.endswith(".bias"):
        return noise / 2
    if "norm" in name:
        gain = np.exp(noise / 2)
        gain[..., 1 :: shape[-1] // 4] *= 6
        return gain
    if "rope" in name:
        return np.linspace(1, 4, shape[0], dtype=np.float32)
    if name.startswith("token_embd"):
        noise[:, 3 :: shape[-1] // 2] *= 8  # outlier channels of the residual stream
    return noise / np.float32(shape[-1]) ** 0.5
