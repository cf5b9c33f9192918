"""The same input and options give the same bytes: any threads, tiles, memory, time and CPU."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.processor import NEEDS, can_run, without_avx512
from tests.tiny_models import write_tiny
from tqgguf import pipeline
from tqgguf.errors import PlanError
from tqgguf.kernels import hadamard
from tqgguf.machine.machine import Machine
from tqgguf.models import open_model
from tqgguf.pipeline import workers
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan

ROOT = Path(__file__).parent.parent


def convert(source, path, type="tq-q3", **options):
    model = open_model(source)
    list(
        pipeline.convert(
            model,
            make_plan(model, Options(type=type, rotate="fused", effort="fast")),
            path,
            force=True,
            **options,
        )
    )
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def expected(shallow, tmp_path_factory):
    return convert(shallow, tmp_path_factory.mktemp("one") / "q.gguf", machine=Machine(threads=1))


@pytest.mark.usefixtures("two_blas_threads")
@pytest.mark.slow
@pytest.mark.parametrize("options", [{"threads": 2}, {"threads": 7}, {"max_memory": 400 << 20}])
def test_threads_and_memory_change_nothing(shallow, tmp_path, expected, options):
    assert convert(shallow, tmp_path / "q.gguf", machine=Machine(**options)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("tile", [1 << 12, 100_000, 1 << 30])
def test_the_size_of_tiles_changes_nothing(shallow, tmp_path, monkeypatch, expected, tile):
    monkeypatch.setattr(workers, "TILE", tile)
    assert convert(shallow, tmp_path / "q.gguf") == expected


@pytest.mark.slow
def test_tiles_of_one_row_change_nothing(tmp_path, monkeypatch):
    sizes = {"D": 256, "F": 512, "Q": 256, "K": 128, "H": 64, "R": 32, "V": 128}
    source = write_tiny(tmp_path / "m.gguf", "llama", layers=1, sizes=sizes)
    whole = convert(source, tmp_path / "whole.gguf")
    monkeypatch.setattr(workers, "TILE", 1)
    assert convert(source, tmp_path / "rows.gguf") == whole


@pytest.mark.slow
@pytest.mark.parametrize("kernel", NEEDS)
def test_other_processors_give_the_same_bytes(shallow, tmp_path, expected, kernel):
    """OpenBLAS' kernels and NumPy's loops for CPUs without AVX-512 add in other orders."""
    if not can_run(kernel):
        pytest.skip(f"this processor lacks {NEEDS[kernel]}")
    path = tmp_path / "q.gguf"
    env = {**os.environ, "OPENBLAS_CORETYPE": kernel}
    if kernel != "SkylakeX" and (hidden := without_avx512()):
        env["NPY_DISABLE_CPU_FEATURES"] = hidden
    command = [sys.executable, "-W", "error", "-m", "tqgguf", "quantize", shallow, "-o", path]
    options = ["-t", "tq-q3", "--rotate", "fused", "--effort", "fast", "--quiet"]
    subprocess.run([*command, *options], cwd=ROOT, env=env, check=True)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == expected


def test_the_record_of_a_run_holds_no_time_and_no_place(shallow, tmp_path):
    convert(shallow, tmp_path / "a.gguf")
    metadata = open_model(tmp_path / "a.gguf").metadata
    added = set(metadata) - set(open_model(shallow).metadata)
    record = ("tqgguf.vector.", "tqgguf.exponents.", "tqgguf.rotation.")
    ours = {key for key in added if not key.startswith(record)}
    assert ours <= {"tqgguf.version", "tqgguf.recipe", "general.quantization_version"}
    assert {key.removeprefix("tqgguf.rotation.") for key in added - ours} >= {"mode", "seed"}
    assert str(tmp_path).encode() not in (tmp_path / "a.gguf").read_bytes()


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_an_exact_rotation_does_not_depend_on_the_part_that_is_rotated(data):
    kind, order = data.draw(
        st.sampled_from([("sylvester", 2**k) for k in range(10)] + [("regular", 4**4)])
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    spread = data.draw(st.sampled_from([0.0, 1.0, 8.0]))  # up to outliers of e^30
    shape = (data.draw(st.integers(1, 40)), order * data.draw(st.integers(1, 3)))
    x = rng.standard_normal(shape) * np.exp(spread * rng.standard_normal(shape))
    x = x.astype(np.float32)
    whole = hadamard.apply_exact(x, order=order, kind=kind)
    row = data.draw(st.integers(0, len(x) - 1))
    part = hadamard.apply_exact(x[row:].copy(), order=order, kind=kind)
    np.testing.assert_array_equal(part, whole[row:])
    turned = hadamard.apply_exact(x.T.copy(), order=order, kind=kind, axis=0)
    np.testing.assert_array_equal(turned.T, whole)


@pytest.mark.parametrize(("kind", "order"), [("sylvester", 128), ("regular", 64), ("sylvester", 1)])
def test_an_exact_rotation_is_the_product_rounded_once(kind, order):
    x = np.random.default_rng(2).standard_normal((5, 3 * order)).astype(np.float32)
    want = hadamard.apply(x.astype(np.float64), order=order, kind=kind)
    got = hadamard.apply_exact(x, order=order, kind=kind)
    assert np.abs(got - want).max() <= 1.5e-7 * np.abs(want).max()
    assert not hadamard.apply_exact(np.zeros((2, order), np.float32), order=order).any()
    with pytest.raises(ValueError, match="cannot be cut into blocks"):
        hadamard.apply_exact(np.ones((2, 3), np.float32), order=4)


def test_too_little_memory_is_said_before_anything_is_written(tmp_path):
    source = write_tiny(tmp_path / "m.gguf", "llama")
    with pytest.raises(PlanError, match=r"--max-memory 99 MiB is too little .* needs \d+ MiB"):
        convert(source, tmp_path / "q.gguf", machine=Machine(max_memory=99 << 20))
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
