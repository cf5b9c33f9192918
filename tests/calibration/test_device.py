"""Calibration on a device: array_api_strict's arrays in the place of a card's."""

import gc
from dataclasses import replace

import numpy as np
import pytest

from tests.card import CARD, CardArray
from tests.network.graphs import write_graph
from tqgguf.calibration import cached
from tqgguf.calibration.calibrate import calibrate
from tqgguf.calibration.device_desk import SMALLER
from tqgguf.calibration.sensitivity import measure_sensitivity
from tqgguf.calibration.settings import Feedback
from tqgguf.calibration.statistics import input_energies
from tqgguf.calibration.tokens import Text
from tqgguf.errors import DeviceError, PlanError
from tqgguf.formats import dequantize
from tqgguf.machine import devices
from tqgguf.machine.devices import find_device
from tqgguf.machine.machine import Machine
from tqgguf.models import open_model
from tqgguf.planning import inputs
from tqgguf.planning.inputs import find_inputs
from tqgguf.planning.plan import Options
from tqgguf.rotation.rotation import NO_ROTATION

TOKENS = np.random.default_rng(5).integers(3, 2048, (4, 64)).astype(np.int32)
ONCE = Feedback(sweeps=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return open_model(write_graph(tmp_path_factory.mktemp("model") / "model.gguf", "llama"))


def types_of(model, *parts):
    return {n: "Q4_0" for n in model.tensors if any(part in n for part in parts)}


def test_a_device_rounds_as_the_cpu_does(model):
    types = types_of(model, "blk.0.attn_q", "blk.0.ffn_down", "blk.1.attn_output")
    ours = dict(calibrate(model, types, TOKENS, ONCE, device=CARD, sizes=SMALLER[-1]))
    for name, theirs in calibrate(model, types, TOKENS, ONCE):
        ours_values, values = (dequantize(d, "Q4_0", 64 * 2) for d in (ours[name], theirs))
        assert np.mean(ours_values == values) > 0.9, name  # a tie may fall either way


def test_energies_and_sensitivities_are_those_of_the_cpu(model):
    ours, theirs = (input_energies(model, TOKENS, device=d) for d in (CARD, devices.CPU))
    for name, sums in theirs.sums.items():
        np.testing.assert_allclose(ours.sums[name], sums, rtol=1e-3)
    names = ["blk.0.attn_q.weight", "token_embd.weight", "output.weight"]
    ours, theirs = (
        measure_sensitivity(model, names, TOKENS, device=d) for d in (CARD, devices.CPU)
    )
    assert ours == pytest.approx(theirs, rel=2e-2)


def test_a_device_without_memory_leaves_the_rest_to_the_cpu(model, monkeypatch, tmp_path):
    """Every step down is said, and what was finished before is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rows = []

    def fails(*arrays):
        rows.append(len(arrays))
        raise MemoryError

    small = replace(CARD, run=fails)
    monkeypatch.setattr(cached, "find_device", lambda _: small)
    types = types_of(model, "blk.0.attn_q")
    made = cached.calibrate_model(model, NO_ROTATION, types, TOKENS, settings=ONCE)
    (expected,) = dict(calibrate(model, types, TOKENS, ONCE)).values()
    assert np.array_equal(made.rows["blk.0.attn_q.weight"], expected)
    assert len(rows) == len(SMALLER)
    assert [n.partition(":")[0] for n in made.notes[1:4]] == ["a strict card"] * 3
    assert made.notes[-1] == "the rest was calibrated on the CPU"


def test_a_device_goes_on_in_smaller_pieces(model, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    failures = iter([MemoryError])

    def fails_once(work, *arrays):
        for error in failures:
            raise error
        work(*arrays)

    monkeypatch.setattr(cached, "find_device", lambda _: replace(CARD, run=fails_once))
    types = types_of(model, "blk.0.attn_q")
    made = cached.calibrate_model(model, NO_ROTATION, types, TOKENS, settings=ONCE)
    assert made.notes == (
        "calibrated on a strict card",
        "a strict card: its memory does not do for 8,192 tokens and 32,768 rows at a time",
    )
    assert made.rows.keys() == types.keys()


@pytest.mark.slow
def test_smaller_pieces_take_less_of_the_device(tmp_path):
    """What does not depend on the size of pieces, what waits for later, is not kept there."""
    model = open_model(write_graph(tmp_path / "model.gguf", "gemma2"))  # all its matrices wait
    types, tokens = types_of(model, "blk.0", "blk.1"), np.tile(TOKENS, (4, 1))

    def held(sizes):
        gc.freeze()  # what is there already is looked at no more: it takes as long as all the rest
        found = calibrate(model, types, tokens, ONCE, device=CARD, sizes=sizes)
        most = max(alive() for _ in found)
        gc.unfreeze()
        return most

    assert held(SMALLER[-1]) < 0.7 * held(SMALLER[0])


def alive():
    """The bytes of all arrays on the device."""
    gc.collect()
    arrays = (each for each in gc.get_objects() if isinstance(each, CardArray))
    return sum(np.asarray(each).nbytes for each in arrays)


def test_a_driver_too_old_is_one_sentence(monkeypatch):
    class Old:
        class cuda:  # noqa: N801
            @staticmethod
            def init():
                raise RuntimeError("The driver is too old (found 11040). Update it: http://x\nMore")

    monkeypatch.setattr(devices, "import_module", lambda _: Old)
    with pytest.raises(DeviceError, match=r"^PyTorch cannot use it: .* \(found 11040\)$"):
        devices._torch()


class Driver:
    """A driver that starts, or does not, and finds so many cards."""

    def __init__(self, code, cards=0):
        self.code, self.cards = code, cards

    def cuInit(self, _):  # noqa: N802
        return self.code

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = self.cards
        return 0


@pytest.mark.parametrize(
    ("driver", "line"),
    [
        (None, "no NVIDIA driver is installed (libcuda.so.1 is not found)"),
        (Driver(803), "the NVIDIA driver does not start (CUDA error 803)"),
        (Driver(100), "the NVIDIA driver finds no graphics card"),
        (Driver(0, 1), "neither PyTorch nor CuPy is installed: pip install 'tqgguf[cuda]'"),
    ],
)
def test_why_there_is_no_card_is_one_line(monkeypatch, driver, line):
    def absent():
        raise ImportError

    for name in ("_torch", "_cupy"):
        monkeypatch.setattr(devices, name, absent)
    monkeypatch.setattr(devices, "_driver", lambda: driver)
    devices._cuda.cache_clear()
    with pytest.raises(DeviceError) as error:
        find_device("cuda")
    assert str(error.value) == f"--device cuda: {line}; or use --device cpu"
    assert find_device("auto") is devices.CPU
    devices._cuda.cache_clear()


def test_an_unknown_device_is_refused():
    with pytest.raises(DeviceError, match=r"--device tpu is unknown; known: cpu, cuda, auto"):
        find_device("tpu")


def test_the_default_is_the_cpu():
    assert find_device(Machine().device).is_cpu


def test_a_device_that_would_make_no_difference_is_refused(model, monkeypatch):
    monkeypatch.setattr(inputs, "find_device", lambda _: CARD)
    with pytest.raises(PlanError, match="--effort fast computes nothing there"):
        find_inputs(model, Options(effort="fast"), Machine(device="cuda"))
    with pytest.raises(PlanError, match="one process drives the card; leave out --cluster"):
        find_inputs(model, Options(), Machine(device="cuda", cluster="local:2"))


def test_the_card_is_named_beside_the_text(model, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(inputs, "find_device", lambda _: CARD)
    text = Text("a text", "nobody", np.empty(0, np.int32), TOKENS.reshape(-1))
    monkeypatch.setattr(inputs, "read_text", lambda *_, **_options: text)
    found = find_inputs(model, Options(), Machine(device="cuda"))
    assert "computed on a strict card" in found.notes
    assert found.imatrix is not None
