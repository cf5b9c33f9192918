"""From config.json to the GGUF keys of a graph."""

from tqgguf.models.huggingface.architecture import Architecture
from tqgguf.models.huggingface.folder import Config
from tqgguf.models.huggingface.rope import rope_keys
from tqgguf.models.metadata import Value, encode


def convert_hyperparameters(config: Config, architecture: Architecture) -> dict[str, Value]:
    """The keys `{arch}.*` of a model; FileFormatError for what config.json lacks."""
    values = {key.name: key.value(config) for key in architecture.keys}
    if architecture.rope:
        values |= rope_keys(config, architecture)
    return {
        f"{architecture.name}.{name}": encode(value)
        for name, value in values.items()
        if value is not None
    }
