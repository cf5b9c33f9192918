"""A plan reads a header, however many weights it tells of."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clock import effort
from tqgguf.models import open_model
from tqgguf.models.metadata import encode
from tqgguf.output.layout import TensorInfo, lay_out
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan

ROOT = Path(__file__).parent.parent
WIDTH, FFN, LAYERS, VOCABULARY = 16384, 53248, 126, 128256  # Llama 3.1 405B


def write_header(path):
    """A model of 405 B weights in F16, 810 GB of holes; its vocabulary is there."""
    shapes = {
        "attn_norm": (WIDTH,),
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (1024, WIDTH),
        "attn_v": (1024, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_norm": (WIDTH,),
        "ffn_gate": (FFN, WIDTH),
        "ffn_up": (FFN, WIDTH),
        "ffn_down": (WIDTH, FFN),
    }
    infos = [TensorInfo("token_embd.weight", (VOCABULARY, WIDTH), "F16")]
    infos += [
        TensorInfo(f"blk.{i}.{role}.weight", shape, "F32" if len(shape) == 1 else "F16")
        for i in range(LAYERS)
        for role, shape in shapes.items()
    ]
    infos += [
        TensorInfo("output_norm.weight", (WIDTH,), "F32"),
        TensorInfo("output.weight", (VOCABULARY, WIDTH), "F16"),
    ]
    keys = {
        "general.architecture": "llama",
        "llama.block_count": LAYERS,
        "llama.embedding_length": WIDTH,
        "llama.attention.head_count": 128,
        "llama.attention.head_count_kv": 8,
        "tokenizer.ggml.tokens": [f"token {i}" for i in range(VOCABULARY)],
    }
    layout = lay_out({key: encode(value) for key, value in keys.items()}, infos)
    with path.open("wb") as file:
        file.write(layout.header)
        file.truncate(layout.size)


def test_a_model_of_400_billion_weights_is_planned_from_its_header(tmp_path):
    path = tmp_path / "m.gguf"
    write_header(path)
    assert path.stat().st_blocks * 512 < 50e6  # the rest is holes
    plans = []
    spent = effort(
        lambda: plans.append(make_plan(open_model(path), Options(type="tq-q4", rotate="fused")))
    )
    assert spent < 30  # it is 1; a tenth of the weights would be 1000
    (plan,) = plans
    assert 405e9 < plan.source_weights < 406e9
    assert 4.75 < plan.bpw < 4.85  # Q4_K_M's: 4.79
    assert len(plan.tensors) == 9 * LAYERS + 3
    path.unlink()


@pytest.mark.slow
def test_the_command_plans_it_too(tmp_path):
    path = tmp_path / "m.gguf"
    write_header(path)
    command = [sys.executable, "-m", "tqgguf", "plan", path, "--json"]
    shown = []
    for options in (["--rotate", "fused"], []):
        done = subprocess.run(
            [*command, *options], cwd=ROOT, capture_output=True, text=True, check=True
        )
        shown.append(json.loads(done.stdout))
    assert shown[0]["rotation"]["block"] == WIDTH
    assert shown[1]["rotation"]["mode"] == "values"
    assert any("before it quantizes, weights decide" in note for note in shown[1]["notes"])
    path.unlink()
