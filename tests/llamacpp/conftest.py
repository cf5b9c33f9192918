from pathlib import Path

import pytest

from tqgguf.llamacpp import ToolOutput

CAPTURES = Path(__file__).parent.parent / "data" / "llamacpp"


def captured(name: str) -> ToolOutput:
    """What a real program of llama-cpp-python 0.3.36's llama.cpp printed."""
    out, err = (CAPTURES / f"{name}.{stream}" for stream in ("stdout", "stderr"))
    return ToolOutput(out.read_text(), err.read_text())


@pytest.fixture
def capture():
    return captured


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a shell script in the place of one of llama.cpp's programs, to misbehave as told."""
    monkeypatch.setenv("LLAMA_CPP_BIN", str(tmp_path))

    def write(name: str, script: str) -> Path:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return write
