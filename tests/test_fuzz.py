"""Hostile files and every combination of flags: one clean line, bounded memory and time."""

import os
import shutil
import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import fuzz, situations
from tests.tiny_models import write_tiny
from tqgguf.calibration.imatrix import read_imatrix
from tqgguf.cli.console import visible
from tqgguf.errors import FileFormatError, UnsupportedModelError
from tqgguf.models import open_model
from tqgguf.models.metadata import Value, encode
from tqgguf.output.layout import TensorInfo, lay_out
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan
from tqgguf.rotation.recorded import read_rotation

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_two_hundred_damaged_models_get_one_clean_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "200", "20000"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert done.stdout.startswith("200 damaged models, 0 bad answers, ")
    assert int(done.stdout.split(", ")[-1].split()[0]) < 1000  # MiB at most


def test_the_fuzz_would_see_a_traceback(tmp_path):
    model = tmp_path / "m.gguf"
    model.write_bytes(fuzz.serialise(fuzz.llama(Random(1))))
    assert fuzz.complaint(["inspect", str(model)]) == ""
    assert fuzz.complaint(["inspect", str(tmp_path / "none.gguf")]) == ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tqgguf.cli.inspect.open_model", lambda _: 1 / 0)
        assert "ZeroDivisionError" in fuzz.complaint(["inspect", str(model)])


def test_the_fuzz_would_see_a_file_replaced_that_nobody_named(tmp_path):
    source, output, other = (tmp_path / name for name in ("m.gguf", "o.gguf", "mine"))
    for path in (source, output, other):
        path.write_text(path.name)
    before = situations.snapshot(tmp_path)
    named = {"named": [str(output), str(source)], "inputs": [source]}
    output.write_text("new")
    assert situations.lost(before, situations.snapshot(tmp_path), **named) == ""
    source.write_text("new")
    assert situations.lost(before, situations.snapshot(tmp_path), **named).endswith("was replaced")
    source.write_text("m.gguf")
    other.unlink()
    assert situations.lost(before, situations.snapshot(tmp_path), **named).endswith("was removed")


@pytest.mark.parametrize("form", ["legacy", "gguf"])
def test_importance_files_that_are_drawn_are_read(tmp_path, form):
    shapes = {"blk.0.ffn_up.weight": (8, 32), "blk.0.ffn_up_exps.weight": (2, 8, 32)}
    read = set()
    for seed in range(40):
        path = situations.importance(Random(seed), tmp_path / "imatrix", shapes)
        if (path.read_bytes()[:4] == b"GGUF") == (form == "gguf"):
            with suppress(FileFormatError):
                read |= set(read_imatrix(path).sums)
    assert read >= set(shapes)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("good") / "m.gguf", "llama", layers=1)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32))
def test_flags_in_any_combination_get_an_answer(good, seed):
    out = good.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    flags = fuzz.flags(Random(seed))
    assert fuzz.complaint(["quantize", str(good), "-o", str(out / "q.gguf"), *flags]) == "", flags
    assert not any("partial" in p.name for p in out.iterdir())


def hostile(tmp_path, **record):
    """A model whose rotation record is right but for what is given."""
    values = {
        "mode": "fused",
        "kind": "sylvester",
        "block_size": 64,
        "value_block_size": 16,
        "seed": 0,
        "tensors": ["a.weight", "a.bias"],
        "columns": ["gain:v residual", "residual"],
        "rows": ["value", ""],
    } | record
    metadata = {f"tqgguf.rotation.{k}": encode(v) for k, v in values.items() if v is not None}
    metadata |= {"general.architecture": encode("llama"), "tqgguf.version": encode(1)}
    metadata["tqgguf.vector.v"] = encode(np.ones(64, np.float32))
    layout = lay_out(
        metadata, [TensorInfo("a.weight", (32, 64), "F32"), TensorInfo("a.bias", (64,), "F32")]
    )
    path = tmp_path / "m.gguf"
    path.write_bytes(layout.header + bytes(layout.size - len(layout.header)))
    return open_model(path)


def test_a_right_record_is_read(tmp_path):
    assert read_rotation(hostile(tmp_path)).granule("a.weight") == (16, 64)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"mode": "sideways"}, "mode is 'sideways'; expected fused"),
        ({"kind": 7}, "kind is 7; expected sylvester, regular"),
        ({"block_size": 0}, "step 'residual' does not fit"),
        ({"block_size": 48}, "step 'residual' does not fit"),
        ({"block_size": 128}, r"step 'residual' does not fit the 64 columns of a\."),
        ({"block_size": -64}, "block_size is -64, no 32-bit number"),
        ({"block_size": 2**40}, "no 32-bit number"),
        ({"block_size": "64"}, "block_size is '64', no 32-bit number"),
        ({"block_size": True}, "no 32-bit number"),
        ({"value_block_size": 64}, r"step 'value' does not fit the 32 rows of a\.weight"),
        ({"seed": None}, "rotation.seed is missing"),
        ({"tensors": ["a.weight"]}, "arrays differ in length"),
        ({"tensors": 3}, "tensors is no array of texts"),
        ({"columns": [1, 2]}, "columns is no array of texts"),
        ({"rows": ["", "value"]}, r"a\.bias has no rows to turn"),
        ({"columns": ["gain:w", ""]}, "no vector 'w' of 64 values"),
        ({"columns": ["", "wobble"]}, "step 'wobble' is unknown to this version"),
        ({"columns": ["value@x", ""]}, "step 'value@x' does not fit"),
        ({"columns": ["value@65", ""]}, "step 'value@65' does not fit"),
        ({"columns": ["spin:v", ""]}, "step 'spin:v' does not fit"),
    ],
)
def test_a_hostile_rotation_record_is_one_line(tmp_path, record, says):
    with pytest.raises(FileFormatError, match=says) as caught:
        read_rotation(hostile(tmp_path, **record))
    assert "\n" not in str(caught.value)


def test_tensors_that_share_bytes_are_refused(tmp_path):
    infos = [TensorInfo("a.weight", (4, 64), "F32"), TensorInfo("b.weight", (4, 64), "F32")]
    layout = lay_out({}, infos)
    at = layout.header.index(b"b.weight") + len("b.weight") + 4 + 16 + 4
    header = bytearray(layout.header)
    header[at : at + 8] = struct.pack("<Q", 512)
    path = tmp_path / "m.gguf"
    path.write_bytes(bytes(header) + bytes(2048))
    with pytest.raises(FileFormatError, match=r"b\.weight begins at byte \d+, inside a\.weight"):
        open_model(path)


@pytest.mark.parametrize("heads", ["four", 0, -1, 2.5, [4, 8]])
def test_heads_that_make_no_sense_do_not_reach_the_arithmetic(tmp_path, heads):
    metadata, infos, data = fuzz.llama(Random(1))
    metadata = {k: v for k, v in metadata.items() if not k.startswith("tqgguf.")}
    metadata["llama.attention.head_count"] = encode(heads)
    path = tmp_path / "m.gguf"
    path.write_bytes(fuzz.serialise((metadata, infos, data)))
    if isinstance(heads, int):
        with pytest.raises(UnsupportedModelError, match="make no sense"):
            make_plan(open_model(path), Options(type="q8_0", rotate="fused"))
    else:
        plan = make_plan(open_model(path), Options(type="q8_0", rotate="fused"))
        assert plan.rotation.value_block == 0


def damaged(tmp_path, keys, shapes):
    """A tiny model without a head, some keys and shapes of which are others."""
    metadata, infos, data = fuzz.llama(Random(1))
    metadata = {k: v for k, v in metadata.items() if not k.startswith("tqgguf.")} | keys
    infos = [
        replace(i, shape=shapes.get(i.name, i.shape)) for i in infos if "output.w" not in i.name
    ]
    path = tmp_path / "m.gguf"
    path.write_bytes(fuzz.serialise((metadata, infos, data)))
    return open_model(path)


def test_a_gain_for_two_matrices_does_not_fit_four(tmp_path):
    model = damaged(tmp_path, {}, {"token_embd.weight": (2, 2, 32, 32)})
    says = r"output\.weight has shape \(2, 2, 32, 32\), which the fold's step 'gain:output_norm"
    with pytest.raises(UnsupportedModelError, match=says):
        make_plan(model, Options(type="q8_0", rotate="fused"))


def test_heads_that_are_lists_of_lists_are_no_number_of_heads(tmp_path):
    four = encode([4])
    nested = struct.pack("<IQ", four.type, 2) + 2 * four.raw
    model = damaged(tmp_path, {"llama.attention.head_count": Value(four.type, nested)}, {})
    assert model.get("llama.attention.head_count") == [[4], [4]]
    assert make_plan(model, Options(type="q8_0", rotate="fused")).rotation.value_block == 0


def test_layers_are_counted_by_their_tensors_when_rotations_are_compared(tmp_path):
    counts = encode([4, 8])
    path = damaged(tmp_path, {"llama.block_count": counts}, {}).path
    arguments = ["quantize", str(path), "-o", str(tmp_path / "q"), "--rotate", "auto", "--dry-run"]
    assert fuzz.RUNNER.invoke(fuzz.app, arguments).exit_code == 0


@pytest.mark.parametrize("rotate", ["fused", "none", "tensor", "auto"])
def test_a_vocabulary_without_tensors_is_no_model(tmp_path, rotate):
    metadata, _, _ = fuzz.llama(Random(2))
    path, out = tmp_path / "vocabulary.gguf", str(tmp_path / "q.gguf")
    path.write_bytes(fuzz.serialise((metadata, [], {})))
    result = fuzz.RUNNER.invoke(
        fuzz.app, ["quantize", str(path), "-o", out, "--rotate", rotate, "--json"]
    )
    assert result.exit_code == 1
    assert result.output.startswith(f"error: {path}: holds no tensors; expected a model")


def test_control_codes_of_a_file_do_not_reach_the_terminal():
    assert visible("a\x1b[31mred\x07\u2028") == "a\\x1b[31mred\\x07\\u2028"
    assert visible("line\n\tnext ✓") == "line\n\tnext ✓"
