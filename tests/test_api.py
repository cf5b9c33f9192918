"""The library's front door: what it offers, and that it does what the command line does."""

import doctest
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tqgguf
from tests.cli.story import succeeds
from tests.tiny_models import write_tiny
from tqgguf import api
from tqgguf.errors import OutputError

ROOT = Path(__file__).parent.parent
PLAIN = tqgguf.Options(type="tq-q3", effort="fast")


def test_the_examples_in_the_docstrings_are_true(monkeypatch):
    monkeypatch.chdir(ROOT)
    failed, tried = doctest.testmod(api)
    assert (failed, tried > 5) == (0, True)


def test_every_public_name_is_there_and_shown():
    assert len(set(tqgguf.__all__)) == len(tqgguf.__all__)
    assert all(getattr(tqgguf, name) is not None for name in tqgguf.__all__)
    assert set(tqgguf.__all__) <= set(dir(tqgguf))
    with pytest.raises(AttributeError, match="module 'tqgguf' has no attribute 'quantise'"):
        tqgguf.quantise  # noqa: B018


def test_the_import_alone_loads_nothing():
    code = "import sys, tqgguf; sys.exit(any(m in sys.modules for m in ('numpy', 'gguf', 'typer')))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_what_a_caller_without_types_gives(novels, shallow):
    with pytest.raises(tqgguf.TqggufError, match=r"expected \(n_rows, n_in\)"):
        tqgguf.quantize(np.ones(32, np.float32), "Q4_0")
    matrix = str(novels.with_name("novels-5m.imatrix.gguf"))
    plan = tqgguf.plan(shallow, tqgguf.Options(type="q4_k", rotate="none", imatrix=matrix))
    assert any(matrix in note for note in plan.notes)


@pytest.mark.slow
def test_convert_makes_the_file_that_the_command_makes(shallow, tmp_path):
    said = json.loads(
        succeeds(
            *("quantize", shallow, "-o", tmp_path / "a.gguf", "--type", "tq-q3"),
            *("--effort", "fast", "--json", "--quiet"),
        )
    )
    done = tqgguf.convert(
        str(shallow), str(tmp_path / "b.gguf"), PLAIN, machine=tqgguf.Machine(threads=1)
    )
    assert done.files == (tmp_path / "b.gguf",)
    assert done.files[0].read_bytes() == (tmp_path / "a.gguf").read_bytes()
    assert (done.n_bytes, done.plan.bpw) == (said["bytes"], said["bpw"])
    told = [(t["name"], t["type"], t["rel_mse"]) for t in said["tensors"]]
    assert told == [(r.name, r.type, r.rel_mse) for r in done.reports]


@pytest.mark.slow
def test_calibrated_too(tmp_path, shallow, calibration, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text(calibration.read_text()[:8000])
    common = ("--calibrate", text, "--calibrate-tokens", 1024, "--type", "q4_0", "--quiet")
    succeeds("quantize", shallow, "-o", tmp_path / "a.gguf", *common)
    shutil.rmtree(tmp_path / "cache")
    options = tqgguf.Options(type="q4_0", calibrate=text, calibrate_tokens=1024)
    done = tqgguf.convert(tqgguf.open_model(shallow), tmp_path / "b.gguf", options)
    assert done.files[0].read_bytes() == (tmp_path / "a.gguf").read_bytes()


@pytest.mark.slow
def test_the_plan_is_that_of_the_command(shallow):
    said = json.loads(succeeds("plan", shallow, "--type", "tq-q2", "--json"))
    plan = tqgguf.plan(shallow, tqgguf.Options(type="tq-q2"))
    assert [(t["name"], t["type"]) for t in said["tensors"]] == [
        (t.name, t.type) for t in plan.tensors
    ]
    assert said["rotation"]["mode"] == plan.rotation.mode


def test_shards_have_their_names_and_a_finished_output_is_left_alone(tmp_path):
    source = write_tiny(tmp_path / "tiny-f32.gguf", "llama", layers=1)
    split = tqgguf.Split(max_tensors=8)
    done = tqgguf.convert(source, None, PLAIN, split=split)
    assert [f.name for f in done.files] == [f"tiny-TQ-Q3-0000{i}-of-00002.gguf" for i in (1, 2)]
    assert all(f.parent == tmp_path for f in done.files)
    again = tqgguf.convert(source, None, PLAIN, split=split, resume=True)
    assert (again.files, again.reports, again.n_bytes) == (done.files, (), done.n_bytes)
    with pytest.raises(OutputError, match="exists already"):
        tqgguf.convert(source, None, PLAIN, split=split)


def test_an_output_in_the_way_is_found_before_the_work(shallow, tmp_path):
    (tmp_path / "mine.gguf").write_bytes(b"mine")
    absent = tqgguf.Options(calibrate=tmp_path / "absent.txt")
    with pytest.raises(OutputError, match=r"mine\.gguf: exists already"):
        tqgguf.convert(shallow, tmp_path / "mine.gguf", absent)
    assert (tmp_path / "mine.gguf").read_bytes() == b"mine"
