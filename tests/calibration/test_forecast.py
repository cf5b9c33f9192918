"""What a forecast says is in proportion; how fast the machine is no test can know."""

import numpy as np
import pytest

from tests.network.small_models import RECIPES, write_model
from tqgguf.calibration import forecast
from tqgguf.models.gguf import read_gguf
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan
from tqgguf.rotation.ends import EMBEDDING, HEAD


def planned(folder, name):
    model = read_gguf(write_model(folder / "model.gguf", RECIPES[name]))
    return model, make_plan(model, Options(type="q4_0", rotate="none")).matrix_types


@pytest.mark.parametrize("name", ["llama", "llama-tied-llama3-rope", "llama-moe", "gpt2"])
def test_shares_are_of_all_weights_that_are_rounded(tmp_path, name):
    model, types = planned(tmp_path, name)
    shares = forecast.shares(model, types, (16, 512))
    assert sum(shares.values()) == sum(model.tensors[n].size for n in shares)
    assert min(shares.values()) >= 0


@pytest.mark.parametrize(
    ("name", "table"), [("llama", HEAD), ("llama-tied-llama3-rope", EMBEDDING)]
)
def test_a_tied_table_takes_a_pass_of_its_own(tmp_path, name, table):
    """Of very many tokens nothing but passes counts: two for the layers, one for the table.

    Of fewer, the table's is kept for the layers.
    """
    model, types = planned(tmp_path, name)
    for tokens, expected in ((1 << 24, 1 / 3), (1 << 14, 1 / 2)):
        shares = forecast.shares(model, types, (tokens, 512))
        share = expected if table == EMBEDDING else 0
        assert shares[table] / sum(shares.values()) == pytest.approx(share, abs=0.03)


def test_more_to_do_takes_longer_and_more_workers_less_long(tmp_path):
    model, types = planned(tmp_path, "llama")
    one, two = (forecast.seconds(model, types, (256, 512), workers=n) for n in (1, 2))
    assert 0 < two < one < forecast.seconds(model, types, (1024, 512), workers=1)
    few = dict(list(types.items())[: len(types) // 2])
    assert forecast.seconds(model, few, (256, 512), workers=1) < one


def test_the_line_names_time_workers_memory_and_disk(tmp_path):
    model, types = planned(tmp_path, "llama")
    line = forecast.expectation(model, types, (16, 512))
    assert line.startswith("calibration on 8,192 tokens takes about ")
    assert np.all(
        [part in line for part in (" at work, ", " GB of memory ", "in the cache's folder")]
    )
