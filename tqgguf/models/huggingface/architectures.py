"""The row of a model's class, or what else there is for it."""

from functools import cache
from importlib.resources import files
from pathlib import Path

from tqgguf.errors import UnknownClassError, UnsupportedModelError
from tqgguf.models.huggingface.architecture import Architecture
from tqgguf.models.huggingface.families import CLASSES
from tqgguf.models.huggingface.folder import Config

__all__ = ["CLASSES", "find_architecture", "official_classes"]


def find_architecture(config: Config) -> Architecture:
    """The row for config.json's architectures; UnknownClassError if there is none."""
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        raise UnsupportedModelError(
            f"{config.path}: has no architectures, so the graph is unknown; expected a causal "
            "language model's config.json"
        )
    name = str(names[0])[:60]
    row = CLASSES.get(name)
    if row is None or not row.covers(config):
        raise UnknownClassError(
            f"{config.path}: {name} cannot be converted natively; {_elsewhere(config.path, name)}",
            name=name,
            official=name in official_classes(),
        )
    return row


def _elsewhere(path: Path, name: str) -> str:
    """What else there is for a class without a row."""
    if name not in official_classes():
        return "llama.cpp's own converter does not know it either"
    folder = path.parent
    return (
        "llama.cpp's own converter can: fetch it with scripts/build_llama_cpp.sh converter, or "
        "name it with --converter, and run this again; or run: python convert_hf_to_gguf.py "
        f"{folder} --outtype bf16 --outfile {folder.name or 'model'}-bf16.gguf"
    )


@cache
def official_classes() -> frozenset[str]:
    """The classes that llama.cpp's converter knows; tests compare the list with the converter."""
    text = files(__package__).joinpath("official.txt").read_text("utf-8")
    return frozenset(text.split())
