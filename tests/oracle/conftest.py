"""Folders that the oracles share: each is written once in a session."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.oracle.cases import CASES, write_folder

Folders = Callable[[str], tuple[Path, np.ndarray]]


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Folders:
    """By a case's name: its folder, and transformers' log-probabilities of TOKENS."""
    root = tmp_path_factory.mktemp("folders")

    @cache
    def written(name: str) -> tuple[Path, np.ndarray]:
        folder = root / name / "model"  # llama.cpp patches vocabularies of models called Phi-3
        return folder, write_folder(folder, CASES[name])

    return written
