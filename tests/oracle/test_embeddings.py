"""The vector of a text is in llama.cpp what torch and transformers compute from the folder.

What sentence-transformers does behind the model (pooling, matrices) is written out here.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from tests.llama import embedding
from tests.models.huggingface.folders import write_json
from tests.models.huggingface.test_embedding import pooled
from tests.oracle.cases import TOKENS, Case, loaded, save_random
from tqgguf.cli import app

pytestmark = pytest.mark.oracle

BASE = "AutoModel"
QWEN3 = Case("Qwen3Config", {"head_dim": 32}, byte_level=True, auto=BASE)
GEMMA = Case(
    "Gemma3TextConfig",
    {
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 16,
        "num_hidden_layers": 6,
        "use_bidirectional_attention": True,
    },
    auto=BASE,
)
POOLINGS = {"lasttoken": lambda x: x[-1], "cls": lambda x: x[0], "mean": lambda x: x.mean(0)}


def states(folder: Path, tokens: Sequence[int]) -> np.ndarray:
    """The normed states of every token: (n_tokens, n_embd)."""
    import torch

    with torch.no_grad():
        return loaded(folder, BASE)(torch.tensor([tokens])).last_hidden_state[0].numpy()


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return np.linalg.norm(a - b) / np.linalg.norm(a)


def converted(folder: Path, rotate: str) -> Path:
    path = folder.with_suffix(f".{rotate}.gguf")
    arguments = ["quantize", folder, "--type", "f32", "--rotate", rotate, "-o", path, "--quiet"]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return path


@pytest.mark.parametrize("pooling", POOLINGS)
def test_qwen3_embedding(pooling, tmp_path):
    folder = tmp_path / "model"
    save_random(folder, QWEN3)
    pooled(folder, {"pooling_mode": pooling})
    expected = POOLINGS[pooling](states(folder, TOKENS))
    for rotate in ("none", "values"):
        assert distance(expected, embedding(converted(folder, rotate), TOKENS)) < 1e-3


def test_embedding_gemma(tmp_path):
    """Both directions, the mean of all tokens, and two matrices behind it."""
    folder = tmp_path / "model"
    save_random(folder, GEMMA)
    pooled(folder, {"pooling_mode_mean_tokens": True})
    vector = POOLINGS["mean"](states(folder, TOKENS))
    modules = json.loads((folder / "modules.json").read_text())
    for number, shape in ((2, (96, 64)), (3, (64, 96))):
        matrix = np.random.default_rng(number).standard_normal(shape, np.float32)
        at = folder / f"{number}_Dense"
        at.mkdir()
        save_file({"linear.weight": matrix}, at / "model.safetensors")
        write_json(at / "config.json", {"bias": False, "activation_function": "x.Identity"})
        modules.append({"type": "x.Dense", "path": at.name})
        vector = matrix @ vector
    write_json(folder / "modules.json", modules)
    found = embedding(converted(folder, "none"), TOKENS)
    assert distance(vector, found) < 1e-2
