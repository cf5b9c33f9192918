"""Stories of --calibrate: what it takes, what it refuses, and what comes out."""

import json
import os
import shutil
import signal
from dataclasses import replace
from functools import partial

import pytest

from tests.cli.story import fails, succeeds
from tests.llama import logprobs
from tests.network.small_models import N_VOCAB, RECIPES, Recipe, write_model
from tests.processes import wait_for
from tqgguf.calibration.bench import Weights
from tqgguf.llamacpp import programs
from tqgguf.models import open_model
from tqgguf.network import forward

HALF = 100_000  # characters: one half of the text calibrates, another one judges
SHORT_WORDS = "the cat sat on a mat and then it ran far off " * 200  # for models of few tokens


def test_a_binary_file_is_no_text(novels, tmp_path):
    fails(
        *("quantize", novels, "--calibrate", novels, "-o", tmp_path / "out.gguf"),
        says="is not UTF-8; calibration needs a plain text file",
    )
    assert not list(tmp_path.iterdir())


def test_zero_bytes_are_no_text(novels, tmp_path):
    text = tmp_path / "text"
    text.write_bytes(b"words\0words")
    fails("quantize", novels, "--calibrate", text, "-o", tmp_path / "out", says="a binary file")


def test_a_missing_text_is_named(novels, tmp_path):
    text = tmp_path / "absent.txt"
    fails(
        *("quantize", novels, "--calibrate", text, "-o", tmp_path / "out"),
        says=f"{text}: no such file or directory",
    )


def test_an_output_in_the_way_is_found_before_the_work(novels, tmp_path):
    (tmp_path / "out.gguf").write_bytes(b"mine")
    fails(
        *("quantize", novels, "--calibrate", tmp_path / "absent", "-o", tmp_path / "out.gguf"),
        says="out.gguf: exists already; overwrite it with --force",
    )


@pytest.mark.tools
def test_a_short_text_says_how_much_is_needed(novels, tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("It was a dark and stormy night; the rain fell in torrents.\n")
    fails(
        *("quantize", novels, "--calibrate", text, "-o", tmp_path / "out"),
        says="tokens, and calibration needs at least 255; 20,000 or more do well",
    )


@pytest.mark.tools
def test_a_token_beyond_the_table_is_refused(tmp_path):
    """A tokenizer with more tokens than the embedding has rows, as a mixed-up file has it."""
    model = write_model(tmp_path / "model.gguf", Recipe("llama", rows=20))
    text = tmp_path / "text.txt"
    text.write_text(SHORT_WORDS)
    fails(
        *("quantize", model, "-t", "q4_0", "--calibrate", text, "-o", tmp_path / "out"),
        says="is beyond the model's table of 20; the tokenizer belongs to another model",
    )


def test_without_a_forward_pass_the_way_out_is_named(novels, tmp_path):
    model, text = tmp_path / "model.gguf", tmp_path / "text.txt"
    model.write_bytes(novels.read_bytes().replace(b"llama", b"mamba"))
    text.write_text("words")
    fails(
        *("quantize", model, "--rotate", "none", "--calibrate", text, "-o", tmp_path / "out"),
        says="model.gguf: no forward pass for architecture 'mamba'; --calibrate needs one: give "
        "--imatrix FILE as well, and errors are weighed by that instead",
    )


@pytest.mark.tools
def test_without_a_forward_pass_an_imatrix_takes_its_place(tmp_path):
    """From llama-imatrix's file to one that llama.cpp runs."""
    recipe = replace(RECIPES["llama"], arch="xverse", hidden=128, kv_heads=4, head_dim=32)
    model = write_model(tmp_path / "model.gguf", recipe)
    text, taken = tmp_path / "text.txt", tmp_path / "imatrix.gguf"
    text.write_text(SHORT_WORDS)
    programs.imatrix(model, text, taken, context=64)
    options = ("quantize", model, "-t", "q4_0", "--rotate", "none", "--quiet")
    weighed, asked = tmp_path / "weighed.gguf", tmp_path / "asked.gguf"
    succeeds(*options, "--imatrix", taken, "-o", weighed)
    shown = succeeds(*options, "--calibrate", text, "--imatrix", taken, "-o", asked, "--json")
    assert any(f"errors are weighed by {taken}" in note for note in json.loads(shown)["notes"])
    assert asked.read_bytes() == weighed.read_bytes()
    assert logprobs(asked, [1, 5, 9]).shape == (3, N_VOCAB)


@pytest.mark.tools
@pytest.mark.usefixtures("cache")
def test_an_imatrix_beside_a_forward_pass_is_said_to_be_idle(tmp_path, novels):
    model, text = write_model(tmp_path / "model.gguf", RECIPES["llama"]), tmp_path / "text.txt"
    text.write_text(SHORT_WORDS)
    idle = novels.with_name("novels-5m.imatrix.gguf")
    shown = succeeds(
        *("quantize", model, "-t", "q4_0", "--calibrate", text, "--imatrix", idle, "--quiet"),
        *("-o", tmp_path / "out.gguf", "--json"),
    )
    note = json.loads(shown)["notes"][-1]
    assert note.endswith(f"tokens of {text}, made by llama-tokenize; {idle} was not needed")


@pytest.mark.tools
def test_calibration_halves_the_divergence_at_the_same_size(shallow, text, tmp_path, cache):
    words = text.read_text()
    (tmp_path / "calibrate.txt").write_text(words[:HALF])
    (tmp_path / "judge.txt").write_text(words[-HALF:])
    plain, ours = tmp_path / "plain.gguf", tmp_path / "ours.gguf"
    options = ("--type", "q3_k", "--rotate", "none")
    succeeds("quantize", shallow, *options, "--quiet", "-o", plain)
    calibrated = ("--calibrate", tmp_path / "calibrate.txt", "--calibrate-tokens", 4096)
    shown = succeeds("quantize", shallow, *options, *calibrated, "-o", ours)
    assert "of the weights; error feedback raises it and lowers the outputs'" in shown
    assert len(list((cache / "calibration").glob("*/*.weight.kept"))) == 15
    assert ours.stat().st_size <= plain.stat().st_size + 128
    assert open_model(ours).get("tqgguf.calibration")
    judged = succeeds(
        *("eval", shallow, plain, ours, "--text", tmp_path / "judge.txt", "--chunks", 8, "--json")
    )
    by_name = {row["model"].split("/")[-1]: row for row in json.loads(judged)["rows"]}
    assert by_name["ours.gguf"]["kld_mean"] < 0.6 * by_name["plain.gguf"]["kld_mean"]


def calibrated(model, type, text, output):
    options = ("--rotate", "none", "--quiet", "--calibrate", text, "--calibrate-tokens", 4096)
    succeeds("quantize", model, "--type", type, *options, "-o", output)
    return output.read_bytes()


@pytest.mark.slow
def test_none_of_llama_cpps_programs_is_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_CPP_BIN", str(tmp_path / "nowhere"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model, text = write_model(tmp_path / "model.gguf", RECIPES["llama"]), tmp_path / "text.txt"
    text.write_text(SHORT_WORDS)
    output = tmp_path / "out.gguf"
    options = ("-t", "q4_0", "--calibrate", text, "--quiet", "--json", "-o", output)
    notes = json.loads(succeeds("quantize", model, *options))["notes"]
    assert notes[-1].endswith(f"tokens of {text}, made by xllamacpp")
    assert open_model(output).get("tqgguf.calibration")


@pytest.mark.tools
def test_a_second_type_reuses_what_the_first_computed(tmp_path, cache, monkeypatch):
    model = write_model(tmp_path / "model.gguf", RECIPES["llama-tied-llama3-rope"])
    text, passes, layer = tmp_path / "text.txt", [], forward.layer
    text.write_text(SHORT_WORDS)

    def counting(*args):  # not the passes that planning makes
        passes.extend([1] * isinstance(args[1], Weights))
        return layer(*args)

    monkeypatch.setattr(forward, "layer", counting)
    succeeds("plan", model, "--calibrate", text)  # its short pass is kept for all types
    passes.clear()
    alone = calibrated(model, "iq4_nl", text, tmp_path / "alone.gguf")
    first = len(passes)  # of the original for its head, and of the quantized network
    shutil.rmtree(cache / "calibration")
    calibrated(model, "q4_0", text, tmp_path / "other.gguf")
    passes.clear()
    assert calibrated(model, "iq4_nl", text, tmp_path / "second.gguf") == alone
    assert len(passes) == first // 2
    passes.clear()
    assert calibrated(model, "iq4_nl", text, tmp_path / "again.gguf") == alone
    assert not passes


@pytest.mark.tools
def test_a_killed_calibration_goes_on_to_the_same_bytes(tmp_path, cache):
    model = write_model(tmp_path / "model.gguf", RECIPES["llama-tied-llama3-rope"])
    text = tmp_path / "text.txt"
    text.write_text(SHORT_WORDS)
    whole = calibrated(model, "q4_0", text, tmp_path / "whole.gguf")
    assert not (cache / "inputs").exists()  # nothing that a short pass would decide
    for kept in (1, 4, 9):  # files, of which there are more in the end
        shutil.rmtree(cache / "calibration")
        child = os.fork()
        if child == 0:
            try:
                calibrated(model, "q4_0", text, tmp_path / "killed.gguf")
            finally:
                os._exit(0)
        wait_for(partial(has_files, cache / "calibration", kept))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        output = tmp_path / f"{kept}.gguf"
        assert calibrated(model, "q4_0", text, output) == whole


def has_files(folder, count):
    return sum(path.is_file() for path in folder.rglob("*")) >= count
