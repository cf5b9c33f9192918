"""Folders with a file changed at random open, or fail with one line; nothing else ever escapes."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.models.huggingface.bpe import train_byte_level
from tests.models.huggingface.folders import write_folder, write_json
from tqgguf.errors import TqggufError
from tqgguf.models import open_model

MUTATIONS = int(os.environ.get("TQGGUF_MUTATIONS", "60"))  # make fuzz: thousands
NUMBERS = [0, -1, 1, 2**31, 2**63, 2**200, 1.5, float("nan"), float("inf"), -1e300]
VALUES = [None, True, False, *NUMBERS, "", "a" * 999, "\ud800", "é", [], [1], [[]], ["a"], {}]
VALUES += [{"a": 1}, {"content": 3}, {"rope_type": "yarn"}, [{"name": "a"}]]
KEYS = ["rope_scaling", "rope_parameters", "text_config", "layer_types", "quantization_config"]
KEYS += ["head_dim", "partial_rotary_factor", "chat_template", "added_tokens", "eos_token_id"]
KEYS += ["eos_token", "added_tokens_decoder", "sliding_window", "tie_word_embeddings"]
CARD = {"license": "mit", "language": ["en"], "base_model": "a/b", "tags": ["x"], "name": "n"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    pieces = write_folder(tmp_path_factory.mktemp("pieces"))
    words = write_folder(tmp_path_factory.mktemp("words"))
    (words / "tokenizer.model").unlink()
    train_byte_level("qwen2", 2048).save(str(words / "tokenizer.json"))
    token = {"content": "<|endoftext|>", "special": True}
    settings = {"eos_token": {"content": "<|im_end|>"}, "added_tokens_decoder": {"0": token}}
    templates = [{"name": "default", "template": "x"}]
    write_json(words / "tokenizer_config.json", {**settings, "chat_template": templates})
    write_json(words / "generation_config.json", {"eos_token_id": [0, 2], "temperature": 0.5})
    (words / "README.md").write_text(f"---\n{json.dumps(CARD)}\n---\n")
    return [pieces, words]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(MUTATIONS))
def test_a_changed_file_gives_a_model_or_one_line(seed, folders):
    rng = random.Random(seed)
    folder = rng.choice(folders)
    path = rng.choice(sorted(folder.iterdir()))
    original = path.read_bytes()
    path.write_bytes(changed(rng, path.name, original))
    try:
        assert "\n" not in outcome(folder)
    finally:
        path.write_bytes(original)


def outcome(folder: Path) -> str:
    """The architecture, once a row of every tensor is read, or why there is no model."""
    try:
        model = open_model(folder)
        for tensor in model.tensors.values():
            tensor.rows(0, 1)
    except TqggufError as error:
        return str(error)
    return model.architecture


def changed(rng: random.Random, name: str, data: bytes) -> bytes:
    if name.endswith(".json"):
        return json.dumps(mutate(rng, json.loads(data))).encode()
    if name == "README.md":
        return f"---\n{json.dumps(mutate(rng, CARD))}\n---\n".encode()
    end = 8 + int.from_bytes(data[:8], "little") if name.endswith(".safetensors") else len(data)
    if name.endswith(".safetensors") and rng.random() < 0.5:
        header = json.dumps(mutate(rng, json.loads(data[8:end]))).encode()
        header += b" " * (-len(header) % 8)
        return len(header).to_bytes(8, "little") + header + data[end:]
    array = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        array[rng.randrange(end)] = rng.randrange(256)
    return bytes(array)


def mutate(rng: random.Random, value: Any) -> Any:
    """The JSON value with one place of it changed."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        value = dict(value)
        key, fate = rng.choice(list(value)), rng.random()
        if fate < 0.15:
            del value[key]
        else:
            new = fate < 0.3
            value[rng.choice(KEYS) if new else key] = mutate(rng, None if new else value[key])
        return value
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        return [mutate(rng, v) if i == place else v for i, v in enumerate(value)]
    return rng.choice(VALUES)
