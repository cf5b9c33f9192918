"""Broken, hostile and unsupported folders: one line that says what is wrong, nothing written."""

import json
import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from tests.models.huggingface.folders import LLAMA, llama_weights, write_folder, write_json
from tqgguf.cli import app
from tqgguf.models import open_model

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path, tmp_path_factory, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))  # no converter
    return write_folder(tmp_path / "model")


def refusal(folder: Path) -> str:
    """The one line that quantize prints; nothing may be written."""
    before = set(folder.parent.rglob("*"))
    output = folder.parent / "out.gguf"
    result = CliRunner().invoke(app, ["quantize", str(folder), "-t", "q8_0", "-o", str(output)])
    assert result.exit_code == 1, (result.output, result.exception)
    assert set(folder.parent.rglob("*")) == before
    assert result.output.startswith("error: ")
    assert result.output.count("\n") == 1
    return result.output


def write_shards(folder: Path, n_shards: int = 3) -> None:
    """The weights in several files, with their index."""
    weights = llama_weights()
    (folder / WEIGHTS).unlink()
    index = {}
    for i in range(n_shards):
        file = f"model-{i + 1:05d}-of-{n_shards:05d}.safetensors"
        part = dict(list(weights.items())[i::n_shards])
        save_file(part, folder / file)
        index |= dict.fromkeys(part, file)
    write_json(folder / INDEX, {"metadata": {}, "weight_map": index})


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; ... removes one."""
    value = {**json.loads(path.read_text()), **changes}
    write_json(path, {k: v for k, v in value.items() if v is not ...})


def entry(shape: Any, offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    """A tensor's line in a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def write_header(path: Path, header: dict[str, Any], data: bytes) -> None:
    """A safetensors file with any header."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_shards_give_the_same_model_as_one_file(folder, tmp_path):
    def quantized(name: str) -> bytes:
        path = tmp_path / name
        result = CliRunner().invoke(app, ["quantize", str(folder), "-t", "q8_0", "-o", str(path)])
        assert result.exit_code == 0, result.output
        return path.read_bytes()

    whole = quantized("whole.gguf")
    write_shards(folder)
    assert quantized("shards.gguf") == whole


def test_a_missing_shard(folder):
    write_shards(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "shard model-00002-of-00003.safetensors is missing (1 of 3)" in refusal(folder)


def test_an_index_that_names_an_absent_tensor(folder):
    write_shards(folder)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.layers.9.weight"] = "model-00001-of-00003.safetensors"
    write_json(folder / INDEX, index)
    assert "has no tensor 'model.layers.9.weight', which the index puts there" in refusal(folder)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", 3])
def test_an_index_that_points_out_of_the_folder(file, folder):
    write_shards(folder)
    write_json(folder / INDEX, {"weight_map": {"model.norm.weight": file}})
    assert "expected a file's name" in refusal(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {}}])
def test_an_index_without_a_map(index, folder):
    write_json(folder / INDEX, index)
    assert "has no weight_map" in refusal(folder)


def test_several_files_without_an_index(folder):
    write_shards(folder)
    (folder / INDEX).unlink()
    assert f"3 .safetensors files and no {INDEX}" in refusal(folder)


def test_a_folder_without_weights(folder):
    (folder / WEIGHTS).unlink()
    assert "has no .safetensors file" in refusal(folder)


@pytest.mark.parametrize("size", [0, 7, 8, 100, 5000, -1])
def test_a_truncated_file(size, folder):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:size])
    assert "not a sound safetensors file" in refusal(folder)


@pytest.mark.parametrize("claim", [100 << 20, 1 << 40, 2**64 - 1])
def test_a_header_that_claims_more_than_the_file_holds(claim, folder):
    path = folder / WEIGHTS
    path.write_bytes(struct.pack("<Q", claim) + path.read_bytes()[8:])
    tracemalloc.start()
    assert "not a sound safetensors file" in refusal(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 << 20


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry([4], [0, 16]), "b": entry([4], [8, 24])},
        {"a": entry([8], [0, 32])},
        {"a": entry([4], [8, 24])},
        {"a": entry([4], [24, 8])},
        {"a": entry([5], [0, 24])},
        {"a": entry([2**40, 2**40], [0, 24])},
        {"a": entry([6], [0, 24], dtype="Q9")},
        {"a": entry([-6], [0, 24])},
        {"a": entry("6", [0, 24])},
        {"a": {"dtype": "F32"}},
        {"a": 3},
    ],
)
def test_a_header_that_contradicts_the_data(header, folder):
    write_header(folder / WEIGHTS, header, bytes(24))
    assert "not a sound safetensors file" in refusal(folder)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b"3"])
def test_a_header_that_is_not_json(text, folder):
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text)
    assert "not a sound safetensors file" in refusal(folder)


def test_a_wrong_dtype(folder):
    weights = llama_weights()
    weights["model.norm.weight"] = weights["model.norm.weight"].astype(np.int64)
    save_file(weights, folder / WEIGHTS)
    assert "model.norm.weight: stored as I64, expected one of F32, F16, BF16" in refusal(folder)


def test_a_missing_tensor(folder):
    weights = llama_weights()
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / WEIGHTS)
    assert "no weights for blk.1.ffn_up.weight" in refusal(folder)


def test_an_unknown_tensor(folder):
    extra = {"model.layers.0.extra.weight": np.ones(4, np.float32)}
    save_file(llama_weights() | extra, folder / WEIGHTS)
    assert "model.layers.0.extra.weight: no such tensor in the llama graph" in refusal(folder)


def test_more_layers_than_config_says(folder):
    edit_json(folder / "config.json", num_hidden_layers=1)
    assert "model.layers.1" in refusal(folder)


def test_a_shape_that_config_contradicts(folder):
    edit_json(folder / "config.json", intermediate_size=64)
    assert "ffn_gate.weight has shape (48, 32), but config.json implies (64, 32)" in refusal(folder)


@pytest.mark.parametrize("layers", [10**9, 2**31 - 1])
def test_a_config_that_claims_a_billion_layers(layers, folder):
    edit_json(folder / "config.json", num_hidden_layers=layers)
    assert f"claims {layers} layers" in refusal(folder)


@pytest.mark.parametrize(
    "key",
    [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
    ],
)
def test_a_config_without_a_needed_key(key, folder):
    edit_json(folder / "config.json", **{key: ...})
    assert f"has no {key}" in refusal(folder)


@pytest.mark.parametrize("value", ["32", -1, 0, 1.5, True, [], 2**40])
def test_a_config_with_a_wrong_value(value, folder):
    edit_json(folder / "config.json", hidden_size=value)
    assert "hidden_size is" in refusal(folder)


def test_heads_that_do_not_divide_the_rows(folder):
    edit_json(folder / "config.json", num_attention_heads=5)
    assert "are not 5 heads of even width" in refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, "\udcff"])
def test_a_config_that_is_no_json_object(text, folder):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "config.json" in refusal(folder)


def test_a_folder_without_config(folder):
    (folder / "config.json").unlink()
    assert "config.json: no such file" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        (
            {"architectures": ["MambaForCausalLM"]},
            "MambaForCausalLM cannot be converted",
        ),
        ({"architectures": ...}, "has no architectures"),
        ({"architectures": [3]}, "3 cannot be converted"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "has no factor"),
        ({"rope_scaling": 3}, "rope_scaling is '3', expected an object"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized by gptq"),
        ({"tie_word_embeddings": False}, "lm_head.weight is absent"),
    ],
)
def test_what_cannot_be_converted(changes, fact, folder):
    edit_json(folder / "config.json", **changes)
    assert fact in refusal(folder)


def test_a_folder_without_tokenizer(folder):
    (folder / "tokenizer.model").unlink()
    assert "has no tokenizer.model and no tokenizer.json; give --vocab-from" in refusal(folder)


def test_a_tokenizer_that_is_not_sentencepiece(folder):
    (folder / "tokenizer.model").write_bytes(b"tiktoken data")
    assert "not a SentencePiece model" in refusal(folder)


def test_a_tokenizer_with_more_tokens_than_embedding_rows(tmp_path):
    folder = write_folder(tmp_path / "model", config={**LLAMA, "vocab_size": 512})
    assert "2048 tokens, but config.json says vocab_size 512" in refusal(folder)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_a_broken_settings_file(name, folder):
    (folder / name).write_text("{broken")
    assert f"{name}: not JSON" in refusal(folder)


def test_a_broken_model_card_is_no_obstacle(folder, tmp_path):
    (folder / "README.md").write_text("---\nlicense: [unclosed\n---\n")
    output = tmp_path / "out.gguf"
    result = CliRunner().invoke(app, ["quantize", str(folder), "-t", "q8_0", "-o", str(output)])
    assert result.exit_code == 0, result.output


def test_the_model_card_names_licence_languages_and_tags(folder):
    (folder / "README.md").write_text(
        "---\nlicense: apache-2.0\nlanguage:\n- en\n- de\ntags: [novels]\n"
        "base_model: org/Base-7B\n---\n"
    )
    write_json(folder / "generation_config.json", {"temperature": 0.5, "top_k": 40})
    model = open_model(folder)
    assert model.get("general.license") == "apache-2.0"
    assert model.get("general.languages") == ["en", "de"]
    assert model.get("general.tags") == ["novels"]
    assert model.get("general.base_model.0.organization") == "Org"
    assert model.get("general.sampling.temp") == 0.5
    assert model.get("general.sampling.top_k") == 40


@pytest.mark.parametrize("package", ["safetensors", "sentencepiece"])
def test_without_the_extra_the_line_says_what_to_install(package, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as Python marks a module it cannot import
    assert f"need the Python package {package}; pip install 'tqgguf[hf]'" in refusal(folder)
