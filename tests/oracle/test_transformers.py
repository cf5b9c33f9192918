"""Converted models compute in llama.cpp what torch and transformers compute from the folder.

Run by `make test-oracle`.
"""

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.llama import logprobs
from tests.oracle.cases import CASES, TOKENS, Case, write_folder
from tqgguf.cli import app

pytestmark = pytest.mark.oracle


LATENT = {
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_computes_what_torch_computes(name, folders, tmp_path):
    """Converted as it is, and folded as far as the architecture allows."""
    folder, expected = folders(name)
    for rotate in dict.fromkeys(("none", CASES[name].rotate)):
        converted = tmp_path / f"{rotate}.gguf"
        arguments = ["quantize", folder, "--type", "f32", "--rotate", rotate, "-o", converted]
        result = CliRunner().invoke(app, [*map(str, arguments), "--quiet"])
        assert result.exit_code == 0, result.output
        assert np.abs(logprobs(converted, TOKENS) - expected).max() < 1e-2


def test_a_class_without_a_row_through_the_official_converter(tmp_path):
    """MiniCPM 3, which has no row of ours: the real converter, in this Python."""
    case = Case("MiniCPM3Config", LATENT, dtype="bfloat16")
    expected = write_folder(tmp_path / "model", case)
    path = tmp_path / "out.gguf"
    arguments = ["quantize", tmp_path / "model", "-t", "f32", "--rotate", "none", "-o", path]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert "MiniCPM3ForCausalLM has no row of ours; llama.cpp's converter made" in result.output
    assert [p.name for p in tmp_path.iterdir() if "bf16" in p.name] == []
    assert np.abs(logprobs(path, TOKENS) - expected).max() < 1e-2
