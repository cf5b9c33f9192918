"""A text of the model's own: written by llama.cpp, kept, in words of its vocabulary."""

import re

import pytest

from tqgguf.calibration.own_text import own_text
from tqgguf.calibration.tokens import read_own_text, sequences
from tqgguf.errors import UnsupportedModelError
from tqgguf.llamacpp import writer
from tqgguf.models import open_model


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def wheel_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_CPP_BIN", str(tmp_path / "nowhere"))


@pytest.mark.slow
@pytest.mark.usefixtures("fresh", "wheel_alone")
def test_the_wheel_writes_it_and_it_is_kept(novels, monkeypatch):
    monkeypatch.setattr("tqgguf.calibration.own_text._PASSAGE", 64)
    model = open_model(novels)
    text = own_text(model, tokens=320).decode()
    assert len(re.findall("[a-z]+", text)) > 100  # words, as a model of novels writes them
    monkeypatch.setattr(writer, "find_spec", lambda _: None)  # now nobody could write it
    assert own_text(model, tokens=320).decode() == text
    tokens = sequences(model, read_own_text(model, tokens=320, threads=1))
    assert tokens.shape == (1, 256)


@pytest.mark.tools
def test_llama_completion_writes_the_same_twice(novels):
    first, second = (writer.write_passages(novels, ["The"], tokens=40, threads=1) for _ in range(2))
    assert first == second
    (passage,), who = first
    assert who == "llama-completion"
    assert passage.startswith("The")
    assert len(passage.split()) > 10


def test_a_folder_has_to_become_a_gguf_file_first(novels):
    with pytest.raises(UnsupportedModelError, match=r"reads GGUF files alone; make one first"):
        own_text(open_model(novels.with_name("novels-5m")))
