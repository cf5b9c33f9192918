"""Stories of --imatrix, --target-bpw, --target-size and --rotate auto."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from tests.cli.story import fails, succeeds
from tests.network.small_models import RECIPES, write_model
from tests.tiny_models import write_tensors, write_tiny
from tqgguf.calibration.imatrix import read_imatrix, write_imatrix
from tqgguf.formats import dequantize
from tqgguf.llamacpp import programs
from tqgguf.models import open_model
from tqgguf.rotation.restored import restored


@pytest.fixture
def imatrix(novels):
    return novels.with_name("novels-5m.imatrix.gguf")


def weighted_error(path, source, imatrix):
    """Squared error of one matrix, its columns weighed by their importance."""
    name = "blk.1.ffn_down.weight"
    stored, weights = open_model(path).tensors[name], source.tensors[name].read()
    error = dequantize(stored.stored(0, stored.n_rows), stored.type, 768) - weights
    return float((np.square(error) * imatrix.importance(name)).sum())


@pytest.mark.slow
def test_an_imatrix_lowers_the_error_it_weighs(shallow, imatrix, tmp_path):
    plain, weighed = tmp_path / "plain.gguf", tmp_path / "weighed.gguf"
    options = ("-t", "q2_k", "--rotate", "none", "--quiet")
    succeeds("quantize", shallow, *options, "--effort", "fast", "-o", plain)
    succeeds("quantize", shallow, *options, "-o", weighed, "--imatrix", imatrix)
    source, taken = open_model(shallow), read_imatrix(imatrix)
    assert weighted_error(weighed, source, taken) < 0.97 * weighted_error(plain, source, taken)


@pytest.mark.slow
def test_an_imatrix_of_the_unrotated_model_serves_under_every_rotation(shallow, imatrix, tmp_path):
    source, taken = open_model(shallow), read_imatrix(imatrix)
    for mode in ("fused", "values"):
        plain, weighed = tmp_path / "plain.gguf", tmp_path / "weighed.gguf"
        options = ("-t", "q2_k", "--rotate", mode, "--no-balance", "--quiet", "--force")
        succeeds("quantize", shallow, *options, "--effort", "fast", "-o", plain)
        succeeds("quantize", shallow, *options, "-o", weighed, "--imatrix", imatrix)
        before, after = (unrotated_error(path, source, taken) for path in (plain, weighed))
        assert after < 0.97 * before, mode


def unrotated_error(path, source, imatrix):
    """As `weighted_error`, after undoing what a rotation did to the rows."""
    name = "blk.1.ffn_down.weight"
    error = restored(open_model(path)).tensors[name].read() - source.tensors[name].read()
    return float((np.square(error) * imatrix.importance(name)).sum())


def test_an_imatrix_of_another_basis_is_refused(novels, imatrix, tmp_path):
    output, rotated = tmp_path / "out.gguf", tmp_path / "rotated.imatrix"
    write_imatrix(rotated, replace(read_imatrix(imatrix), basis="fused sylvester 256 64 7 plain"))
    fails(
        *("quantize", novels, "--rotate", "fused", "--imatrix", rotated, "-o", output),
        says="taken in the basis 'fused sylvester 256 64 7 plain', but the matrices are quantized "
        "in 'fused",
    )
    assert not output.exists()


def test_an_imatrix_of_another_model_is_refused(imatrix, tmp_path):
    model = write_model(tmp_path / "model.gguf", RECIPES["llama"])
    fails(
        *("quantize", model, "-t", "q4_0", "--rotate", "none", "--imatrix", imatrix),
        says="the file belongs to another model",
    )


@pytest.mark.slow
@pytest.mark.parametrize(("target", "limit"), [("950K", 950_000), ("1.2MiB", 12 * 2**20 // 10)])
def test_a_target_size_is_met_and_never_exceeded(shallow, tmp_path, target, limit):
    output = tmp_path / "out.gguf"
    succeeds(
        *("quantize", shallow, "--target-size", target, "--rotate", "none", "-q", "-o", output)
    )
    assert 0.99 * limit <= output.stat().st_size <= limit


def test_plan_shows_the_allocation(shallow):
    shown = json.loads(succeeds("plan", shallow, "--target-bpw", 3.5, "--json"))
    assert 3.465 <= shown["bpw"] <= 3.5
    assert len({t["type"] for t in shown["tensors"]} - {"F32"}) > 1
    assert any("predicted KL divergence" in note for note in shown["notes"])
    assert not re.search(
        r"predicted KL divergence \d", str(shown["notes"])
    )  # other models' figures


def test_two_targets_contradict(shallow):
    fails(
        *("plan", shallow, "--target-bpw", 4, "--target-size", "3M"),
        says="--target-bpw and --target-size: give one of them",
    )


def test_an_impossible_target_says_what_is_needed(shallow):
    fails("plan", shallow, "--target-size", "400K", says="and the smallest types take")


def test_rotate_auto_says_what_it_measured(shallow):
    shown = json.loads(succeeds("plan", shallow, "--rotate", "auto", "-t", "q3_k", "--json"))
    (note,) = [n for n in shown["notes"] if n.startswith("--rotate auto")]
    assert f"auto: {shown['rotation']['mode']}," in note
    assert "predicted output error" in note


def test_rotate_auto_is_none_where_nothing_can_be_folded(shallow, tmp_path):
    model = tmp_path / "model.gguf"
    model.write_bytes(shallow.read_bytes().replace(b"llama", b"mamba"))
    shown = json.loads(succeeds("plan", model, "--rotate", "auto", "--json"))
    assert shown["rotation"]["mode"] == "none"


def test_rotate_auto_leaves_the_stream_where_a_gain_of_zero_forbids_the_fold(tmp_path):
    source = write_tiny(tmp_path / "a.gguf", "falcon")
    tensors = {n: t.read().copy() for n, t in open_model(source).tensors.items()}
    tensors["blk.1.attn_norm.weight"][7] = 0
    model = write_tensors(tmp_path / "b.gguf", source, tensors)
    shown = json.loads(succeeds("plan", model, "--rotate", "auto", "--json"))
    assert shown["rotation"]["mode"] in ("none", "scales", "values")
    assert any("fused is impossible" in note and "gain of zero" in note for note in shown["notes"])


@pytest.mark.tools
def test_llama_quantize_reads_our_imatrix(shallow, text, tmp_path, cache):
    words = tmp_path / "text.txt"
    words.write_text(text.read_text()[:40_000])
    saved, output = tmp_path / "ours.imatrix", tmp_path / "ours.gguf"
    succeeds(
        *("quantize", shallow, "-t", "q8_0", "--rotate", "none", "-q", "-o", output),
        *("--calibrate", words, "--calibrate-tokens", 2048, "--save-imatrix", saved),
    )
    assert cache.is_dir()
    programs.quantize_file(shallow, tmp_path / "theirs.gguf", "Q2_K", imatrix=saved)
    programs.imatrix(shallow, words, tmp_path / "reference.gguf", context=256, chunks=8)
    ours, theirs = read_imatrix(saved), read_imatrix(tmp_path / "reference.gguf")
    for name in theirs.sums:
        a, b = ours.importance(name), theirs.importance(name)
        assert np.corrcoef(np.log(a.ravel() + 1e-9), np.log(b.ravel() + 1e-9))[0, 1] > 0.99
