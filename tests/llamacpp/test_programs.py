from pathlib import Path

import pytest

from tqgguf.errors import ToolError
from tqgguf.llamacpp import ToolOutput, imatrix, quantize_file
from tqgguf.llamacpp.programs import parse_ids


def test_real_token_ids_are_read(capture):
    assert parse_ids(capture("tokenize")) == [1, 564, 313, 265, 1099, 284, 1689, 2011, 13]


@pytest.mark.parametrize("text", ["", "[1, 2", "[1, 'a']", "1", "[None]"])
def test_anything_else_is_an_error(text):
    with pytest.raises(ToolError, match="llama-tokenize: printed no list of ids: error: why"):
        parse_ids(ToolOutput(text, "error: why"))


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
