"""What an encode needs beside its input and its output does not grow with the tensor."""

import tracemalloc

import numpy as np
import pytest

import tqgguf
from tqgguf.formats import FORMATS

BLOCKS = [name for name, fmt in FORMATS.items() if fmt.block_size > 1]
EXTRA = 64 << 20


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_two_threads_need_less_than_64_mib(name):
    x = np.random.default_rng(0).standard_normal((768, 4096), dtype=np.float32)  # four chunks
    tqgguf.quantize(x[:1], name)  # tables that are made once
    tracemalloc.start()
    data = tqgguf.quantize(x, name, threads=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - data.nbytes < EXTRA
