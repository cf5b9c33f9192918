"""What a model takes in memory: llama.cpp's own words about its caches."""

import pytest

from tests.llama import cache_mib
from tests.network.graphs import write_graph
from tqgguf.models import open_model
from tqgguf.network.memory import memory

# one each of: plain, windows, windows of every other layer, latent attention, linear attention
KINDS = ["llama", "gemma3-windowed", "gpt-oss", "cohere2-deep", "deepseek2", "qwen35", "gpt2"]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("context", [200, 8000])
def test_the_cache_takes_what_llama_cpp_takes(tmp_path, name, context):
    path = write_graph(tmp_path / "m.gguf", name)
    model = open_model(path)
    found = memory(model, context)
    assert found.cache / 2**20 == pytest.approx(cache_mib(path, context), abs=0.011)
    assert found.cache > 0
    assert found.weights == model.n_bytes
    assert not found.is_most


def test_a_graph_without_a_row_is_counted_without_windows(tmp_path):
    path = write_graph(tmp_path / "m.gguf", "llama")
    told = memory(open_model(path), 512)
    data = path.read_bytes().replace(b"llama", b"lxama")
    (tmp_path / "other.gguf").write_bytes(data)
    other = memory(open_model(tmp_path / "other.gguf"), 512)
    assert (other.cache, other.is_most) == (told.cache, True)
