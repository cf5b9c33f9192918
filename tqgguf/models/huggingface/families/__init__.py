"""What the converter knows of each architecture: rows, one module a family. The package is scanned.

A row says which tensors its graph in llama.cpp loads and how wide they are, which of config.json's
values become which GGUF keys, and what that graph cannot do. To add an architecture, add a row to
its family's CLASSES, or a module.
"""

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules

from tqgguf.models.huggingface.architecture import Architecture

# Hugging Face's class (config.json: architectures) -> its row.
CLASSES: Mapping[str, Architecture] = {
    name: row
    for module in sorted(m.name for m in iter_modules(__path__) if not m.name.startswith("_"))
    for name, row in import_module(f"{__name__}.{module}").CLASSES.items()
}
