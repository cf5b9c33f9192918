"""What is kept is what was given, or nothing: never something else."""

import os
import signal
import time

import numpy as np
import pytest

from tests.processes import wait_for
from tqgguf.calibration import kept, work
from tqgguf.calibration.desk import open_desk
from tqgguf.calibration.kept import Kept, open_kept

ARRAYS = [
    np.arange(12, dtype=np.float32).reshape(3, 4),
    np.array(["ffn_gate", "ffn_up"]),
    np.empty((0, 7), np.float32),
    np.arange(5, dtype=np.uint8)[::2],
]


def same(found, arrays):
    return len(found) == len(arrays) and all(
        a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(found, arrays, strict=True)
    )


def test_arrays_come_back_as_they_were(tmp_path):
    Kept(tmp_path).write("blk.0.attn_q.weight", ARRAYS)
    assert same(Kept(tmp_path).read("blk.0.attn_q.weight"), ARRAYS)
    assert Kept(tmp_path).read("blk.0.attn_k.weight") is None


def test_once_makes_an_entry_only_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return ARRAYS

    for _ in range(3):
        assert same(Kept(tmp_path).once("a", make), ARRAYS)
    assert made == [1]


def test_no_damaged_entry_is_returned(tmp_path):
    store = Kept(tmp_path)
    store.write("a", ARRAYS)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        assert store.read("a") is None
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        assert store.read("a") is None
    for other in (whole + b"\0", bytes(4), bytes(len(whole))):
        path.write_bytes(other)
        assert store.read("a") is None
    path.write_bytes(whole)
    assert same(store.read("a"), ARRAYS)


def test_the_entry_of_another_is_not_returned(tmp_path):
    for key in "xy":
        open_kept(tmp_path, key).write("a", ARRAYS)
    store, whole = Kept(tmp_path / "x"), (tmp_path / "x" / "a.kept").read_bytes()
    (tmp_path / "x" / "b.kept").write_bytes(whole)
    (tmp_path / "y" / "a.kept").write_bytes(whole)
    assert same(store.read("a"), ARRAYS)
    assert store.read("b") is None
    assert Kept(tmp_path / "y").read("a") is None


def test_only_what_fits_the_room_is_kept(tmp_path):
    mebibyte = [np.zeros(1 << 20, np.uint8)]
    for name in "abc":
        Kept(tmp_path, room=(2 << 20) + 1000).write(name, mebibyte)
    assert [Kept(tmp_path).read(name) is None for name in "abc"] == [False, False, True]


def test_a_disk_that_refuses_is_no_error(tmp_path):
    store = Kept(tmp_path)
    tmp_path.rmdir()
    store.write("a", ARRAYS)
    assert store.read("a") is None


def test_the_folders_used_longest_ago_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "LIMIT", 2500)
    for i, key in enumerate(["old", "older", "new"]):
        open_kept(tmp_path, key).write("a", [np.zeros(1000, np.uint8)])
        os.utime(tmp_path / key, (i, i))
    os.utime(tmp_path / "old", (9, 9))
    open_kept(tmp_path, "another")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another", "new", "old"]
    open_kept(tmp_path, "roomy", room=1000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another", "old", "roomy"]


@pytest.mark.parametrize("delay", [0.002, 0.01, 0.05])
def test_a_killed_process_leaves_whole_entries_or_none(tmp_path, delay):
    data = np.arange(1 << 20, dtype=np.float32)
    pid = os.fork()
    if pid == 0:
        store = Kept(tmp_path)
        for i in range(10**6):
            store.write(f"{i % 4}", [data + i])
    wait_for(lambda: any(tmp_path.iterdir()))
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    for i in range(4):
        found = Kept(tmp_path).read(f"{i}")
        assert found is None or np.array_equal(found[0], data + found[0][0])


def test_moments_that_are_taken_are_there_when_the_entry_is_gone(tmp_path):
    """Another process may make room meanwhile, and what lay on the desk before is not meant."""
    kept, h = Kept(tmp_path), np.diag(np.arange(1, 9, dtype=np.float32))
    kept.write("h", [h])
    with open_desk(tmp_path / "desks") as desk:
        desk.put("m.k", np.ones((1, 8, 8), np.float32))
        assert not work.take_kept(desk, kept, [("k", "h"), ("l", "absent")])
        assert work.take_kept(desk, kept, [("k", "h")])
        (tmp_path / "h.kept").unlink()
        work.factor(desk, "k", 0.01, kept, "h")
        assert np.array_equal(desk.get("h.k"), h)
