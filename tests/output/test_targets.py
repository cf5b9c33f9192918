"""Outputs are looked at before any work: nothing that nobody named is replaced."""

import os
import socket

import pytest

from tests.cli.story import fails
from tqgguf.errors import OutputError
from tqgguf.models import input_files
from tqgguf.output.files import check_output, partial_path
from tqgguf.output.journal import journal_path
from tqgguf.output.targets import check_targets


def refused(path, *, says, inputs=(), force=True, others=None):
    with pytest.raises(OutputError, match=says):
        check_output(path, inputs=inputs, force=force, others=others)


def test_a_regular_file_is_replaced_with_force_alone(tmp_path):
    path = tmp_path / "a"
    check_output(path, inputs=[], force=False)
    path.write_text("old")
    refused(path, force=False, says="exists already; overwrite it with --force")
    check_output(path, inputs=[], force=True)


def test_an_input_is_never_replaced_by_whatever_name(tmp_path):
    source = tmp_path / "m.gguf"
    source.write_text("weights")
    (tmp_path / "soft").symlink_to(source)
    os.link(source, tmp_path / "hard")
    for name in ("m.gguf", "soft", "hard", "../" + tmp_path.name + "/m.gguf"):
        refused(tmp_path / name, inputs=[source], says="the output is the input; choose another")
    fine = tmp_path / "o.gguf"
    refused(fine, inputs=[source], others={"--save-imatrix": source}, says="with --save-imatrix")


def test_saving_an_imatrix_replaces_nothing(tmp_path, novels, calibration):
    source, text, other = (tmp_path / name for name in ("m.gguf", "text.txt", "other.gguf"))
    source.write_bytes(novels.read_bytes())
    text.write_text(calibration.read_text()[:2000])
    other.write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    rest = ("quantize", source, "--calibrate", text, "-o", tmp_path / "o.gguf", "--save-imatrix")
    for path in (source, text):
        fails(*rest, path, "--force", says="the output is the input; choose another with --save-im")
    fails(*rest, other, says="exists already; overwrite it with --force")
    fails(*rest, other, "--resume", says="neither a GGUF nor a legacy imatrix")
    fails(*rest, tmp_path / "o.gguf", says="--output and --save-imatrix name the same file")
    fails(*rest, tmp_path / "no" / "i", says="the folder")
    fails(*rest, tmp_path, says="is a folder; expected the name of a file")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_two_options_may_not_name_one_file(tmp_path):
    path = tmp_path / "x.gguf"
    (tmp_path / "link").symlink_to(tmp_path)
    other = tmp_path / "link" / "x.gguf"
    refused(path, others={"--save-imatrix": other}, says="--output and --save-imatrix name the")


@pytest.mark.parametrize("ending", [".partial", ".partial.journal"])
def test_no_option_may_name_the_unfinished_output(tmp_path, ending):
    other = tmp_path / f"o.gguf{ending}"
    says = "the unfinished output has that name; choose another with --save-imatrix"
    refused(tmp_path / "o.gguf", others={"--save-imatrix": other}, says=says)


def special(kind, path):
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "link to a device":
        path.symlink_to("/dev/null")
    elif kind == "link to itself":
        path.symlink_to(path)
    else:
        path.mkdir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("fifo", "is a pipe, no regular file"),
        ("socket", "is a socket, no regular file"),
        ("link to a device", "is a device, no regular file"),
        ("link to itself", "too many levels of symbolic links"),
        ("folder", "is a folder; expected the name of a file"),
    ],
)
def test_what_is_no_regular_file_stays(tmp_path, monkeypatch, novels, kind, says):
    monkeypatch.chdir(tmp_path)  # the names of sockets are short
    special(kind, tmp_path / "o.gguf")
    before = os.lstat(tmp_path / "o.gguf")[:3]  # mode, number, device
    fails("quantize", novels, "-o", "o.gguf", "--force", says=says)
    fails("dequantize", novels, "-o", "o.gguf", "--force", says=says)
    assert os.lstat(tmp_path / "o.gguf")[:3] == before


def test_a_link_that_leads_nowhere_counts_as_a_file(tmp_path):
    path = tmp_path / "o.gguf"
    path.symlink_to(tmp_path / "nowhere")
    refused(path, force=False, says="exists already")
    check_output(path, inputs=[], force=True)


@pytest.mark.slow
@pytest.mark.parametrize("sidecar", [partial_path, lambda p: journal_path(partial_path(p))])
def test_what_lies_where_the_unfinished_output_goes_is_kept(tmp_path, novels, sidecar):
    path, precious = tmp_path / "o.gguf", tmp_path / "precious"
    precious.write_text("mine")
    sidecar(path).symlink_to(precious)
    fails("quantize", novels, "-o", path, "--force", says="something else is in its place")
    sidecar(path).unlink()
    sidecar(path).mkdir()
    fails("quantize", novels, "-o", path, "--force", says="something else is in its place")
    assert precious.read_text() == "mine"


def test_an_input_that_has_the_unfinished_outputs_name_is_kept(tmp_path, novels):
    source = tmp_path / "o.gguf.partial"
    source.write_bytes(novels.read_bytes())
    fails("quantize", source, "-o", tmp_path / "o.gguf", says="something else is in its place")
    assert source.read_bytes() == novels.read_bytes()


@pytest.mark.parametrize("folder", ["missing", "file"])
def test_the_folder_must_be_one(tmp_path, folder):
    (tmp_path / "file").write_text("")
    says = "the folder .* does not exist|not a directory"
    refused(tmp_path / folder / "o.gguf", says=says)
    with pytest.raises(OutputError, match=says):
        check_targets({"--plot": [tmp_path / folder / "p.svg"]}, inputs=[], force=True)


def test_a_name_that_is_too_long_is_one_line(tmp_path):
    refused(tmp_path / ("x" * 300), says="file name too long")


@pytest.mark.parametrize("command", ["report", "eval"])
def test_a_picture_does_not_replace_a_model(tmp_path, novels, text, command):
    source = tmp_path / "model.svg"
    source.write_bytes(novels.read_bytes())
    rest = ("mse", source) if command == "report" else (source, source, "--text", text)
    fails(command, *rest, "--plot", source, "--force", says="the output is the input; choose")
    assert source.read_bytes() == novels.read_bytes()


def test_every_file_of_a_folder_is_an_input(tmp_path):
    for name in ("config.json", "merges.txt", "model.safetensors", "chat_template.jinja"):
        (tmp_path / name).write_text("")
    assert set(input_files(tmp_path)) == set(tmp_path.iterdir())
    assert input_files(tmp_path / "merges.txt") == [tmp_path / "merges.txt"]
    assert input_files(tmp_path / "absent.gguf") == []
