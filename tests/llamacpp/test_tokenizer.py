"""Tokens of llama-tokenize and of the wheel are the same, and nobody is silent about which."""

import os
import signal
import subprocess
import sys

import pytest
from processes import alive, started, wait_for

from tests.models.huggingface.bpe import TEXTS, train_byte_level
from tests.models.huggingface.folders import write_folder
from tests.network.small_models import RECIPES, write_model
from tqgguf.errors import FileFormatError, ToolError
from tqgguf.llamacpp import programs
from tqgguf.llamacpp.tokenizer import by_wheel, tokenize, write_vocabulary
from tqgguf.machine.folders import own_folder
from tqgguf.models import open_model
from tqgguf.models.metadata import encode


def bytes_folder(path):
    folder = write_folder(path)
    (folder / "tokenizer.model").unlink()
    train_byte_level("llama-bpe", 2048).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def no_programs(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_CPP_BIN", str(tmp_path / "nowhere"))


@pytest.fixture
def manifold(tmp_path):
    """Many scripts, spaces, lines that end in both ways, and what looks like control tokens."""
    text = tmp_path / "text.txt"
    text.write_bytes(("\r\n".join(TEXTS) + "\n\n  <s>a</s> <|endoftext|>  ").encode())
    return text


@pytest.mark.tools
@pytest.mark.parametrize("kind", ["sentencepiece", "bytes"])
def test_the_wheel_tokenizes_as_llama_tokenize(kind, novels, calibration, manifold, tmp_path):
    model = open_model(novels if kind == "sentencepiece" else bytes_folder(tmp_path / "folder"))
    vocabulary = tmp_path / "vocabulary.gguf"
    write_vocabulary(vocabulary, model.metadata)
    for text in (calibration, manifold):
        ids = programs.tokenize(vocabulary, text)
        assert by_wheel(vocabulary, text) == ids
        if kind == "sentencepiece":
            assert programs.tokenize(novels, text) == ids
    assert len(ids) > 300


@pytest.mark.tools
def test_llama_tokenize_is_preferred(novels, manifold):
    assert tokenize(open_model(novels).metadata, manifold)[1] == "llama-tokenize"


@pytest.mark.usefixtures("no_programs")
def test_the_wheel_takes_its_place(novels, manifold):
    ids, name = tokenize(open_model(novels).metadata, manifold)
    assert name == "xllamacpp"
    assert ids[0] == 1
    assert 1 not in ids[1:]  # <s> in a text is three characters


@pytest.mark.usefixtures("no_programs")
def test_without_either_both_cures_are_named(novels, manifold, monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ToolError, match=r"llama-tokenize: .*: make llama.cpp, or .*\[llama\]"):
        tokenize(open_model(novels).metadata, manifold)


@pytest.mark.usefixtures("no_programs")
def test_a_vocabulary_that_llama_cpp_refuses_is_an_error(tmp_path):
    model = write_model(tmp_path / "model.gguf", RECIPES["llama"])
    text = tmp_path / "text.txt"
    text.write_text("a character beyond the vocabulary: \n")
    with pytest.raises(ToolError, match=r"tqgguf\.llamacpp\.wheel: "):
        tokenize(open_model(model).metadata, text)


@pytest.mark.parametrize("tokens", [None, [], "words", 7])
def test_a_model_without_a_vocabulary_is_refused(novels, manifold, tokens):
    metadata = dict(open_model(novels).metadata)
    del metadata["tokenizer.ggml.tokens"]
    if tokens is not None:
        metadata["tokenizer.ggml.tokens"] = encode(tokens)
    with pytest.raises(FileFormatError, match="no vocabulary"):
        tokenize(metadata, manifold)


@pytest.mark.parametrize("ends", ["Ctrl-C", "usage"])
def test_a_run_that_ends_early_leaves_no_program_and_no_file(
    program, novels, manifold, tmp_path, monkeypatch, ends
):
    """A text becomes tokens while modules are imported, before options are looked at."""
    program("llama-tokenize", 'echo "$$" >"$0.new"; mv "$0.new" "$0.pid"; exec sleep 60')
    note, scratch = tmp_path / "llama-tokenize.pid", tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wrong = ["--wrong"] if ends == "usage" else []
    command = [sys.executable, "-m", "tqgguf", "quantize", novels, "--calibrate", manifold, *wrong]
    with started([*command, "-o", tmp_path / "out.gguf"], stderr=subprocess.DEVNULL) as run:
        if not wrong:
            wait_for(note.exists)
            run.send_signal(signal.SIGINT)
        assert run.wait(20) == (2 if wrong else 130)
    assert not note.exists() or not alive(int(note.read_text()))
    assert not list(scratch.iterdir())
    assert not (tmp_path / "out.gguf").exists()


def test_what_a_killed_run_left_is_removed_by_the_next(novels, manifold, tmp_path):
    """Where programs for tokenizing work; the folder of a run that is still at work stays."""
    died = (
        "import os, sys, pathlib; from tqgguf.models import open_model; "
        "from tqgguf.llamacpp.tokenizer import tokenize\n"
        "tokenize(open_model(pathlib.Path(sys.argv[1])).metadata, pathlib.Path(sys.argv[2]), "
        "meanwhile=lambda: os.kill(os.getpid(), 9))"
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    env = os.environ | {"TMPDIR": str(scratch)}
    killed = subprocess.run([sys.executable, "-c", died, novels, manifold], env=env, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len([*scratch.iterdir()]) == 1
    with own_folder(scratch) as mine, own_folder(scratch) as another:
        assert {*scratch.iterdir()} == {mine, another}
    assert not list(scratch.iterdir())
