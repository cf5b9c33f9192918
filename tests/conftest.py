import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import threadpoolctl

from tests.tiny_models import write_shallow
from tqgguf.errors import ToolError
from tqgguf.llamacpp import find
from tqgguf.machine.cache import user_cache
from tqgguf.machine.threads import default_threads

DATA = Path(__file__).parent / "data"
# Processes that tests start, and the next session, do not compile every module again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# What a shell starts in the background ignores Ctrl-C, which some tests press.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def shared_processors() -> Iterator[None]:
    """One thread of BLAS for each worker of xdist.

    With more than there are processors, every product waits for threads that do not run: the tests
    of a forward pass took ten times longer.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    with threadpoolctl.threadpool_limits(1):
        yield


@pytest.fixture
def two_blas_threads() -> Iterator[None]:
    """For tests of what must not depend on threads: products by two, which add in another order."""
    with threadpoolctl.threadpool_limits(2):
        yield


@pytest.fixture(scope="session")
def novels() -> Path:
    """The trained model that the project embeds: Llama, 5.2 M parameters, tied head, F16."""
    return DATA / "novels-5m-f16.gguf"


@pytest.fixture(scope="session")
def shallow(tmp_path_factory) -> Path:
    """Two of its six layers, 2.1 M parameters: for stories that any trained model tells."""
    return write_shallow(tmp_path_factory.mktemp("shallow") / "shallow-2m-f16.gguf")


@pytest.fixture(scope="session")
def stories() -> Path:
    """A model with rows of 64 and 172 weights, F32: no block type fits its ffn_down."""
    return DATA / "stories260K-f32.gguf"


@pytest.fixture(scope="session")
def text() -> Path:
    """Novels that the embedded model was not trained on."""
    return DATA / "novels-eval.txt"


@pytest.fixture(scope="session")
def calibration() -> Path:
    """Other novels, for calibration."""
    return DATA / "novels-calib.txt"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Iterator[Path]:
    """An empty user cache, with llama.cpp's programs from where they are."""
    monkeypatch.setenv("LLAMA_CPP_BIN", str(find("llama-perplexity").parent))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield user_cache()
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)  # hundreds of megabytes


def missing_programs() -> str:
    """Why the tests marked `tools` cannot run, or nothing."""
    try:
        for name in ("llama-bench", "llama-perplexity", "llama-quantize"):
            find(name)
    except ToolError as error:
        return str(error)
    return ""


def pytest_collection_modifyitems(config, items):
    if missing_programs():
        left_out = [item for item in items if item.get_closest_marker("tools")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    if hasattr(config, "workerinput"):  # long ones first: at the end no worker waits for another
        items.sort(key=lambda item: not item.get_closest_marker("slow"))


# What is costly to make is made by one worker of xdist, which runs all tests that need it: ggml's
# tables for types of few bits, and fixtures of a module.
TOGETHER = re.compile(
    r"formats/test_(?:error|lattice)\.py.*(IQ1|IQ2_X*S)"
    r"|(calibration/test_workers|machine/\w+|measure/test_(?:mse|synthetic)|output/test_resume)\.py"
)


def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            found = TOGETHER.search(nodeid)
            return found[1] or found[2] if found else nodeid

    return Scheduling(config, log)


def pytest_xdist_auto_num_workers():
    """One more than there are processors: tests wait for disks, other programs and each other."""
    return 1 + default_threads()


def pytest_terminal_summary(terminalreporter):
    why = missing_programs()
    said = f"tests marked `tools` left out: {why}" if why else "tests marked `tools` were collected"
    terminalreporter.write_line(said)
