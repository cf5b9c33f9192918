from pathlib import Path

import pytest
from processes import alive

from tqgguf.errors import PlanError, ToolError
from tqgguf.llamacpp import ToolOutput, imatrix, quantize_file
from tqgguf.llamacpp.programs import parse_ids, tokenize


def test_real_token_ids_are_read(capture):
    assert parse_ids(capture("tokenize")) == [1, 564, 313, 265, 1099, 284, 1689, 2011, 13]


@pytest.mark.parametrize("text", ["", "[1, 2", "[1, 'a']", "1", "[None]"])
def test_anything_else_is_an_error(text):
    with pytest.raises(ToolError, match="llama-tokenize: printed no list of ids: error: why"):
        parse_ids(ToolOutput(text, "error: why"))


@pytest.mark.parametrize("fails", [False, True])
def test_tokens_are_taken_when_they_are_there_and_work_is_done_until_then(program, fails):
    path = program("llama-tokenize", 'echo $$ >"$0.pid"; echo text; echo "[1, 2]"; exec sleep 60')
    note = path.with_suffix(".pid")

    def work():
        while not (note.exists() and note.read_text()):
            pass
        if fails:
            raise PlanError("no")

    if fails:
        with pytest.raises(PlanError):
            tokenize(Path("model"), Path("text"), meanwhile=work)
    else:
        assert tokenize(Path("model"), Path("text"), meanwhile=work) == [1, 2]
    assert not alive(int(note.read_text()))


def test_half_a_list_of_a_program_that_died_is_an_error(program):
    program("llama-tokenize", "printf '[1, 2'; kill -KILL $$")
    with pytest.raises(ToolError, match="llama-tokenize: killed by SIGKILL"):
        tokenize(Path("model"), Path("text"))


def test_options_go_before_the_files_and_threads_last(program, tmp_path):
    program("llama-quantize", 'echo "$@" > "$0.log"; : > "$6"')
    target = tmp_path / "out.gguf"
    quantize_file(
        Path("in.gguf"),
        target,
        "Q4_0",
        imatrix=Path("im.gguf"),
        pure=True,
        threads=2,
        options=["--leave-output-tensor"],
    )
    said = (tmp_path / "llama-quantize.log").read_text()
    assert said == f"--leave-output-tensor --imatrix im.gguf --pure in.gguf {target} Q4_0 2\n"


def test_no_output_file_is_an_error_even_with_status_0(program, tmp_path):
    program("llama-quantize", "echo 'failed to quantize: disk full' >&2")
    with pytest.raises(ToolError, match=r"wrote no .*disk full"):
        quantize_file(Path("in.gguf"), tmp_path / "out.gguf", "Q4_0")
    program("llama-imatrix", "true")
    with pytest.raises(ToolError, match="llama-imatrix: wrote no"):
        imatrix(Path("in.gguf"), Path("t.txt"), tmp_path / "im.gguf")
