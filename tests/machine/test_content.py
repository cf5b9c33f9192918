"""A file's key is of what is in it, whoever reads it and when."""

import os
import threading

import pytest

from tqgguf.machine.content import content_key, expect_content


def expected(*files):
    """Begin to read, and wait for it."""
    before = set(threading.enumerate())
    expect_content(files)
    for reader in set(threading.enumerate()) - before:
        reader.join()


def test_what_was_expected_is_not_read_again(tmp_path):
    file, other = tmp_path / "a", tmp_path / "b"
    file.write_bytes(b"what it holds")
    other.write_bytes(b"what it holds")
    expected(file)
    stat = file.stat()
    file.write_bytes(b"another thing")  # of the same size, at the same time
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert content_key([file], 1) == content_key([other], 1)
    os.utime(file, ns=(0, 0))
    assert content_key([file], 1) != content_key([other], 1)


def test_a_file_that_is_not_there_is_the_askers_error(tmp_path):
    expected(tmp_path / "absent")
    with pytest.raises(FileNotFoundError):
        content_key([tmp_path / "absent"])
    (tmp_path / "absent").write_text("now it is")
    assert content_key([tmp_path / "absent"])
