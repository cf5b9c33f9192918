"""Texts as tokens: the built-in one, what is kept, and sequences from all over a text."""

from pathlib import Path

import numpy as np
import pytest

from tqgguf.calibration.tokens import (
    BUILTIN,
    SHORT_TOKENS,
    Text,
    builtin_text,
    expect_text,
    read_text,
    sequences,
    short_sequences,
)
from tqgguf.errors import FileFormatError, PlanError
from tqgguf.llamacpp import tokenizer
from tqgguf.models import open_model


@pytest.fixture
def model(novels):
    return open_model(novels)


def text_of(body, name="text"):
    return Text(name, "nobody", np.array([1], np.int32), np.arange(body, dtype=np.int32))


def test_the_built_in_text_is_small_and_of_many_scripts():
    with builtin_text() as path:
        words, size = path.read_text(encoding="utf-8"), path.stat().st_size
    assert size < 100_000
    for part in (
        "def ",
        "| Country |",
        "User:",
        "\\int",
        "где" if "где" in words else "семьи",
        "猫",
    ):
        assert part in words, part


def test_what_is_tokenized_once_is_kept(model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = read_text(model, None)
    asked = []
    monkeypatch.setattr("tqgguf.calibration.tokens.tokenize", asked.append)
    again = read_text(model, None)
    assert (again.name, again.tokenizer) == (BUILTIN, first.tokenizer)
    np.testing.assert_array_equal(again.body, first.body)
    assert not asked


def test_what_is_expected_is_tokenized_once_and_its_faults_are_told(
    model, novels, calibration, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []

    def counted(*arguments, **options):
        asked.append(arguments)
        return tokenizer.tokenize(*arguments, **options)

    monkeypatch.setattr("tqgguf.calibration.tokens.tokenize", counted)
    expect_text(novels, calibration)
    assert len(read_text(model, calibration).body) > 10_000
    assert len(asked) == 1
    expect_text(novels, tmp_path / "absent.txt")
    with pytest.raises(FileFormatError, match=r"absent\.txt: no such file"):
        read_text(model, tmp_path / "absent.txt")


def test_a_cache_that_cannot_be_written_is_done_without(model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(read_text(model, None).body) > 10_000


def test_a_short_pass_looks_all_over_the_text(model):
    tokens = short_sequences(model, text_of(100_000))
    assert 0.9 * SHORT_TOKENS < tokens.size < 1.1 * SHORT_TOKENS
    assert (tokens[:, 0] == 1).all()
    assert np.diff(tokens[:, 1]).min() > 20_000
    assert (np.diff(tokens[:, 1:], axis=1) == 1).all()


def test_a_little_text_is_used_whole(model):
    assert short_sequences(model, text_of(40)).tolist() == [[1, *range(40)]]


def test_a_users_text_is_read_from_its_beginning_and_the_built_in_one_all_over(model):
    size = 255
    theirs = sequences(model, text_of(100 * size), limit=4 * size)
    assert theirs[:, 1].tolist() == [0, size, 2 * size, 3 * size]
    ours = sequences(model, text_of(100 * size, BUILTIN), limit=4 * size)
    assert ours[:, 1].tolist() == [0, 25 * size, 50 * size, 75 * size]
    whole = sequences(model, text_of(10 * size, BUILTIN))
    np.testing.assert_array_equal(whole, sequences(model, text_of(10 * size)))


def test_fewer_tokens_than_a_sequence_are_refused_whoever_says_so(model):
    assert sequences(model, text_of(255), limit=255).shape == (1, 256)
    with pytest.raises(PlanError, match=r"^text: 254 tokens, and calibration needs at least 255;"):
        sequences(model, text_of(254))
    with pytest.raises(PlanError, match=r"^--calibrate-tokens: 254 tokens, and .* at least 255;"):
        sequences(model, text_of(999), limit=254)


def test_a_text_without_a_token_is_refused(model, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(PlanError, match=r"empty.txt: nothing in it becomes a token"):
        read_text(model, tmp_path / "empty.txt")


def test_no_tokenizer_at_hand_is_said(model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LLAMA_CPP_BIN", str(tmp_path / "nowhere"))
    monkeypatch.setattr(tokenizer, "find_spec", lambda _: None)
    with pytest.raises(Exception, match=r"install xllamacpp"):
        read_text(model, Path(__file__))
