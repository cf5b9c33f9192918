"""Models are tiny here: BLAS's threads would only wait for each other."""

import pytest

from tqgguf.machine.threads import single_threaded_blas


@pytest.fixture(autouse=True)
def one_blas_thread():
    with single_threaded_blas():
        yield
