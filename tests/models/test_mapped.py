"""Reading a mapped file does not keep it in memory."""

import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file

from tqgguf.errors import FileFormatError
from tqgguf.models import open_model
from tqgguf.models.huggingface.safetensors import read_weights
from tqgguf.models.mapped import give_back, map_file
from tqgguf.output.layout import TensorInfo, lay_out

SHAPE, ROWS = (8192, 2048), 1024  # of a matrix of 32 MiB in F16, and read at a time
KEPT = 6 << 20  # bytes: the system maps up to 2 MiB around a page that is read
READS = {
    "rows": lambda tensor, a, b: tensor.rows(a, b),
    "strips": lambda tensor, a, b: tensor.read_tile((a, b), (0, 256)),
    "runs": lambda tensor, a, b: tensor.read_runs([(a, (a + b) // 2), ((a + b) // 2, b)], (0, 256)),
    "stored": lambda tensor, a, b: tensor.stored(a, b),
}


def gguf_tensor(folder, type):
    layout = lay_out({}, [TensorInfo("a.weight", SHAPE, type)])
    with (folder / "m.gguf").open("wb") as file:
        file.write(layout.header)
        file.truncate(layout.size)
    return open_model(folder / "m.gguf").tensors["a.weight"]


def safetensors_tensor(folder, _):
    path = folder / "model.safetensors"
    save_file({"a.weight": np.zeros(SHAPE, np.float16)}, path)
    return read_weights(path)["a.weight"].tensor()


def mapped_bytes():
    """Bytes of files that this process has in memory."""
    return psutil.Process().memory_info().shared


@pytest.mark.skipif(not psutil.LINUX, reason="only Linux tells how much of a file is in memory")
@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize(
    ("open_tensor", "type"),
    [(gguf_tensor, "F16"), (gguf_tensor, "Q8_0"), (safetensors_tensor, "F16")],
)
def test_a_tensor_that_was_read_is_given_back(tmp_path, open_tensor, type, read):
    tensor = open_tensor(tmp_path, type)
    read(tensor, 0, 1)
    before = mapped_bytes()
    for row in range(0, SHAPE[0], ROWS):
        assert not read(tensor, row, row + ROWS).any()
        assert mapped_bytes() - before < KEPT


def test_only_whole_pages_of_a_file_are_given_back(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes(range(256)) * 64)
    data = map_file(path)
    give_back(data[100:9000].reshape(-1, 2)[:, :1])
    give_back(np.arange(4))  # of no file
    assert data.tobytes() == path.read_bytes()


def test_files_that_cannot_be_mapped(tmp_path):
    (tmp_path / "empty").touch()
    assert map_file(tmp_path / "empty").size == 0
    with pytest.raises(FileFormatError, match=r"none: no such file or directory"):
        map_file(tmp_path / "none")
