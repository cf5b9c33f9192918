"""Importance matrices: llama-imatrix's own file is the oracle."""

import struct
from dataclasses import replace

import gguf
import numpy as np
import pytest

from tqgguf.calibration.imatrix import (
    Imatrix,
    basis_of,
    check_basis,
    matched,
    read_imatrix,
    write_imatrix,
)
from tqgguf.errors import FileFormatError, PlanError
from tqgguf.rotation.rotation import NO_ROTATION, Rotation


@pytest.fixture
def theirs(novels):
    return novels.with_name("novels-5m.imatrix.gguf")


def test_their_file_is_read(theirs):
    ours = read_imatrix(theirs)
    reader = {t.name: t.data for t in gguf.GGUFReader(theirs).tensors}
    name = "blk.3.ffn_down.weight"
    expected = reader[f"{name}.in_sum2"] / reader[f"{name}.counts"]
    np.testing.assert_allclose(ours.importance(name).ravel(), expected.ravel(), rtol=1e-6)
    assert ours.basis == "none"
    assert ours.importance("blk.99.ffn_down.weight") is None


def test_ours_reads_back_and_gguf_py_agrees(theirs, tmp_path):
    before = read_imatrix(theirs)
    path = tmp_path / "ours.gguf"
    write_imatrix(path, before)
    after = read_imatrix(path)
    assert after.datasets == before.datasets
    assert after.chunk_size == before.chunk_size
    assert all(np.array_equal(after.sums[n], before.sums[n]) for n in before.sums)
    ours, reference = (gguf.GGUFReader(p) for p in (path, theirs))
    assert {t.name: t.data.tobytes() for t in ours.tensors} == {
        t.name: t.data.tobytes() for t in reference.tensors
    }
    for key in ("general.type", "imatrix.chunk_count", "imatrix.chunk_size"):
        assert ours.fields[key].contents() == reference.fields[key].contents()


def legacy(entries, calls=7):
    data = struct.pack("<i", len(entries))
    for name, values in entries.items():
        data += struct.pack("<i", len(name)) + name.encode()
        data += struct.pack("<ii", calls, len(values))
        data += (np.asarray(values, "<f4") * calls).tobytes()
    return data + struct.pack("<ii", calls, 4) + b"text"


def test_the_legacy_format_is_read(tmp_path):
    path = tmp_path / "imatrix.dat"
    path.write_bytes(legacy({"a": [1, 2, 3], "b": [0.5]}))
    imatrix = read_imatrix(path)
    np.testing.assert_allclose(imatrix.importance("a"), [[1, 2, 3]], rtol=1e-6)
    np.testing.assert_allclose(imatrix.importance("b"), [[0.5]], rtol=1e-6)


def test_the_legacy_formats_experts_are_told_apart_by_the_tensor(tmp_path):
    path = tmp_path / "imatrix.dat"
    path.write_bytes(legacy({"e": [1, 2, 3, 4, 5, 6], "a": [1, 2, 3]}))
    fitted = matched(read_imatrix(path), {"e": (2, 5, 3), "a": (7, 3), "absent": (4, 4)}, path)
    np.testing.assert_allclose(fitted.importance("e"), [[1, 2, 3], [4, 5, 6]], rtol=1e-6)
    np.testing.assert_allclose(fitted.importance("a"), [[1, 2, 3]], rtol=1e-6)
    assert fitted.importance("absent") is None
    with pytest.raises(PlanError, match="a has 3 importance values, but the tensor needs 4"):
        matched(read_imatrix(path), {"a": (7, 4)}, path)


def test_an_expert_that_saw_nothing_counts_evenly():
    imatrix = Imatrix(
        {"e": np.array([[4, 8], [0, 0]], np.float32)}, {"e": np.array([4, 0], np.float32)}, "none"
    )
    assert imatrix.importance("e").tolist() == [[1, 2], [1, 1]]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "neither a GGUF nor a legacy imatrix"),
        (b"hello, world", "neither a GGUF nor a legacy imatrix"),
        (struct.pack("<i", 0), "holds no entries"),
        (struct.pack("<ii", 1, -5), "a bad name"),
        (struct.pack("<ii1sii", 1, 1, b"a", 1, 2**30), "more than the file holds"),
        (legacy({"a": [1, -2]}), "below 0 or not finite"),
        (legacy({"a": [1, np.nan]}), "below 0 or not finite"),
    ],
)
def test_broken_files_are_refused(tmp_path, data, says):
    path = tmp_path / "imatrix.dat"
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match=says):
        read_imatrix(path)


def test_a_model_is_no_imatrix(novels):
    with pytest.raises(FileFormatError, match="without importance data"):
        read_imatrix(novels)


def test_another_basis_is_refused(theirs):
    imatrix = read_imatrix(theirs)
    rotated = Rotation(mode="fused", block=256, value_block=64, seed=1)
    for rotation in (NO_ROTATION, rotated):
        check_basis(imatrix, rotation, theirs)
    of_rotated = replace(imatrix, basis=basis_of(rotated))
    check_basis(of_rotated, rotated, theirs)
    with pytest.raises(PlanError, match=r"taken in the basis 'fused .*; give one of the unrotated"):
        check_basis(of_rotated, NO_ROTATION, theirs)
    assert basis_of(rotated) != basis_of(Rotation(mode="fused", block=256, value_block=64, seed=2))
