"""Stories of --effort: what each level uses, what it says, and what is a contradiction."""

import json
import re

import numpy as np
import pytest

from tests.cli.story import fails, run, succeeds
from tests.tiny_models import write_tiny
from tqgguf.calibration.imatrix import read_imatrix
from tqgguf.formats import dequantize
from tqgguf.llamacpp import tokenizer
from tqgguf.machine.memory import readable_size
from tqgguf.models import open_model

UNROTATED = ("-t", "q2_k", "--rotate", "none", "--quiet")


def made(model, path, *options):
    document = json.loads(succeeds("quantize", model, "-o", path, "--json", "--force", *options))
    return document, path.read_bytes()


@pytest.mark.slow
def test_the_default_minds_the_inputs_and_fast_does_not(novels, shallow, tmp_path):
    theirs = read_imatrix(novels.with_name("novels-5m.imatrix.gguf"))
    source, errors = open_model(shallow), {}
    for effort in ("fast", "good"):
        document, _ = made(shallow, tmp_path / "q.gguf", *UNROTATED, "--effort", effort)
        assert document["effort"] == effort
        stored = open_model(tmp_path / "q.gguf").tensors["blk.1.ffn_down.weight"]
        error = (
            dequantize(stored.stored(0, stored.n_rows), stored.type, 768)
            - source.tensors[stored.name].read()
        )
        errors[effort] = float((np.square(error) * theirs.importance(stored.name)).sum())
    assert errors["good"] < 0.97 * errors["fast"]


@pytest.mark.slow
@pytest.mark.usefixtures("two_blas_threads")
def test_good_is_the_default_and_does_not_depend_on_threads_or_what_is_kept(
    shallow, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    document, first = made(shallow, tmp_path / "q.gguf", *UNROTATED, "--threads", 1)
    assert (document["effort"], document["text"]) == ("good", "the built-in text")
    again = made(shallow, tmp_path / "q.gguf", *UNROTATED, "--threads", 3, "--effort", "GOOD")
    assert again[1] == first


@pytest.mark.slow
def test_a_tied_table_is_rounded_as_the_head_it_is(shallow, tmp_path):
    options = (*UNROTATED, "--token-embedding-type", "q2_k")
    made(shallow, tmp_path / "good.gguf", *options)
    made(shallow, tmp_path / "fast.gguf", *options, "--effort", "fast")
    tables = [
        open_model(tmp_path / f"{n}.gguf").tensors["token_embd.weight"] for n in ("good", "fast")
    ]
    assert (tables[0].stored(0, 100) != tables[1].stored(0, 100)).any()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--effort", "most"), "--effort most is unknown; known: fast, good, best"),
        (("--effort", "good", "--calibrate", "x"), "--calibrate means --effort best; leave out"),
        (("--calibrate-tokens", 9), "--calibrate-tokens: --effort good rounds without error feed"),
    ],
)
def test_contradictions_are_one_line(novels, tmp_path, options, says):
    fails("quantize", novels, "-o", tmp_path / "q.gguf", *options, says=says)
    fails("plan", novels, *options, says=says)
    assert not list(tmp_path.iterdir())


def test_an_imatrix_of_no_text_cannot_be_saved(shallow, tmp_path):
    result = run("quantize", shallow, "--effort", "fast", "--save-imatrix", tmp_path / "i.gguf")
    assert result.exit_code == 2
    assert "needs a text" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_inputs_of_a_short_pass_can_be_saved_and_used_again(shallow, tmp_path):
    saved = tmp_path / "saved.imatrix"
    _, first = made(shallow, tmp_path / "q.gguf", *UNROTATED, "--save-imatrix", saved)
    _, again = made(shallow, tmp_path / "q.gguf", *UNROTATED, "--imatrix", saved)
    assert again == first


@pytest.mark.tools
@pytest.mark.usefixtures("cache")
def test_best_takes_the_built_in_text_if_no_other_is_given(shallow, tmp_path):
    options = ("-t", "q8_0", "--effort", "best", "--calibrate-tokens", 512, "--quiet")
    document, _ = made(shallow, tmp_path / "q.gguf", *options)
    assert (document["effort"], document["text"]) == ("best", "the built-in text")
    assert any("calibrated on 512 tokens of the built-in" in note for note in document["notes"])
    assert open_model(tmp_path / "q.gguf").get("tqgguf.calibration")


def used_no_text(document, why):
    assert document["text"] is None
    (note,) = (n for n in document["notes"] if n.startswith("no text was used, as with --effort f"))
    assert why in note


def test_without_a_forward_pass_good_goes_on_as_fast(shallow, tmp_path):
    model = tmp_path / "model.gguf"
    model.write_bytes(shallow.read_bytes().replace(b"llama", b"lhama"))
    document, good = made(model, tmp_path / "q.gguf", *UNROTATED)
    used_no_text(document, "no forward pass for architecture 'lhama'")
    assert made(model, tmp_path / "q.gguf", *UNROTATED, "--effort", "fast")[1] == good


def test_without_a_tokenizer_good_goes_on_as_fast(shallow, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LLAMA_CPP_BIN", str(tmp_path / "nowhere"))
    monkeypatch.setattr(tokenizer, "find_spec", lambda _: None)
    document, _ = made(shallow, tmp_path / "q.gguf", *UNROTATED)
    used_no_text(document, "install xllamacpp: pip install 'tqgguf[llama]'")


def test_the_plan_of_a_large_model_says_what_will_be_measured(shallow, monkeypatch):
    monkeypatch.setattr("tqgguf.planning.choices._QUICK", 1000)
    shown = json.loads(succeeds("plan", shallow, "--rotate", "fused", "--json"))
    assert "before it quantizes, inputs are measured on the built-in text" in shown["notes"]
    assert (shown["effort"], shown["text"]) == ("good", None)


@pytest.mark.slow
def test_decisions_are_said_before_and_what_more_would_bring_afterwards(shallow, tmp_path):
    shown = succeeds("quantize", shallow, "-o", tmp_path / "q.gguf", "-t", "tq-q2")
    before, _, after = shown.partition("q.gguf")
    planned = succeeds("plan", shallow, "-t", "tq-q2")
    for label in ("rotation", "text", "types", "size"):
        (line,) = (x for x in before.splitlines() if x.startswith(f"{label} "))
        assert line in planned.splitlines()
    assert f"size      {readable_size((tmp_path / 'q.gguf').stat().st_size)}, " in before
    assert "predicted output error" in before
    assert "tokens of the built-in text" in before
    assert re.search(r"effort\W+good, the built-in text", after)
    assert "more:      --effort best rounds with error feedback" in after
    fast = succeeds("quantize", shallow, "-o", tmp_path / "f.gguf", "--effort", "fast")
    assert "text      none is used" in fast
    assert "more:      --effort good" in fast


def test_a_model_whose_stream_cannot_be_rotated_needs_no_option(tmp_path):
    model = write_tiny(tmp_path / "model.gguf", "gemma3")
    document, _ = made(model, tmp_path / "q.gguf", "--quiet")
    assert document["rotation"]["mode"] in ("none", "values", "scales")
    (why,) = (note for note in document["notes"] if note.startswith("--rotate auto"))
    assert "fused is impossible, the residual stream of gemma3 cannot be rotated" in why
    assert run("verify", tmp_path / "q.gguf", model).exit_code == 0


def test_nothing_is_measured_where_nothing_is_rounded(shallow, tmp_path):
    document, _ = made(shallow, tmp_path / "q.gguf", "-t", "f32", "--quiet")
    assert document["text"] is None
    assert "none is used: nothing is rounded" in document["notes"]
    document, _ = made(
        shallow, tmp_path / "q.gguf", "-t", "f32", "--output-type", "q8_0", "--quiet"
    )
    assert document["text"] == "the built-in text"
