"""Stories of --calibrate: what it takes, what it refuses, and what comes out."""

import json

import pytest

from tests.cli.story import fails, succeeds
from tqgguf.models import open_model

HALF = 100_000  # characters: one half of the text calibrates, another one judges


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
def test_calibration_halves_the_divergence_at_the_same_size(novels, text, tmp_path, cache):
    words = text.read_text()
    (tmp_path / "calibrate.txt").write_text(words[:HALF])
    (tmp_path / "judge.txt").write_text(words[-HALF:])
    plain, ours = tmp_path / "plain.gguf", tmp_path / "ours.gguf"
    options = ("--type", "q3_k", "--rotate", "none", "--quiet")
    succeeds("quantize", novels, *options, "-o", plain)
    calibrated = ("--calibrate", tmp_path / "calibrate.txt", "--calibrate-tokens", 8192)
    succeeds("quantize", novels, *options, *calibrated, "-o", ours)
    assert len(list((cache / "calibration").glob("*/*.npy"))) == 43
    assert ours.stat().st_size <= plain.stat().st_size + 128
    assert open_model(ours).get("tqgguf.calibration")
    judged = succeeds(
        *("eval", novels, plain, ours, "--text", tmp_path / "judge.txt", "--chunks", 8, "--json")
    )
    by_name = {row["model"].split("/")[-1]: row for row in json.loads(judged)["rows"]}
    assert by_name["ours.gguf"]["kld_mean"] < 0.6 * by_name["plain.gguf"]["kld_mean"]
