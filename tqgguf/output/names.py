"""What an output is called where nobody says: beside its input, after it and its recipe."""

import re
from pathlib import Path

from tqgguf.models.gguf import SHARD_NAME
from tqgguf.models.hub import cached_repository, display_name

_FLOAT_SUFFIX = re.compile(r"[-._](f32|f16|bf16|fp16|fp32)$", re.IGNORECASE)


def default_output(model: Path, recipe: str) -> Path:
    """Beside the input: its name without shard numbers and float type, then -RECIPE.gguf.

    What lies in Hugging Face's cache is named after its repository and goes to the current folder.
    """
    shard, cached = SHARD_NAME.match(model.name), cached_repository(model) is not None
    unnamed = model.is_dir() or (cached and not (model.suffix == ".gguf" or shard))
    stem = shard["stem"] if shard else display_name(model) if unnamed else model.stem
    folder = Path.cwd() if cached else (model if model.name else model.resolve()).absolute().parent
    return folder / f"{_FLOAT_SUFFIX.sub('', stem)}-{recipe}.gguf"
