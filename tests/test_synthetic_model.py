"""scripts/make_synthetic_model.py: a model that can be planned, the same for the same seed."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from tqgguf.models import open_model
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan

SCRIPT = Path(__file__).parents[1] / "scripts" / "make_synthetic_model.py"
SMALL = ["--hidden", "256", "--ffn", "512", "--layers", "2", "--vocab", "300"]


def make(path, *options):
    command = [sys.executable, str(SCRIPT), str(path), *SMALL, *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_every_matrix_fits_every_type(tmp_path):
    path = tmp_path / "model.gguf"
    assert "M parameters" in make(path)
    model = open_model(path)
    plan = make_plan(model, Options(type="Q4_K", rotate="fused"))
    assert {t.type for t in plan.tensors if len(t.shape) == 2} == {"Q4_K"}
    weights = model.tensors["blk.1.ffn_down.weight"].read()
    assert weights.shape == (256, 512)
    assert abs(float(np.std(weights)) / 0.02 - 1) < 0.02


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    for name, seed in [("a", "1"), ("b", "1"), ("c", "2")]:
        make(tmp_path / name, "--seed", seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c
