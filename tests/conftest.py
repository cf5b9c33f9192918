from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def novels() -> Path:
    """The trained model that the project embeds: Llama, 5.2 M parameters, tied head, F16."""
    return DATA / "novels-5m-f16.gguf"


@pytest.fixture(scope="session")
def stories() -> Path:
    """A model with rows of 64 and 172 weights, F32: no block type fits its ffn_down."""
    return DATA / "stories260K-f32.gguf"
