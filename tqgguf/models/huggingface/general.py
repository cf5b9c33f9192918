"""The keys general.*: what the model is called, who made it, its licence, its sampling defaults."""

import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from gguf import GGUFValueType, GGUFWriter, LlamaFileType, Metadata
from yaml import YAMLError

from tqgguf.models.metadata import Value, encode
from tqgguf.models.model import Tensor

_FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "BF16": LlamaFileType.MOSTLY_BF16,
}


def general_keys(
    folder: Path, architecture: str, tensors: Mapping[str, Tensor]
) -> dict[str, Value]:
    """Keys from the model card, config.json, generation_config.json and the folder's name.

    The heuristics are gguf-py's own, so that the names agree with other converters'. A card that
    they cannot read is left out: it is for people, not for the graph.
    """
    n_weights = sum(t.size for t in tensors.values())
    try:
        writer = _filled(folder, architecture, Metadata.load(None, folder, None, n_weights))
    except (YAMLError, AttributeError, TypeError, ValueError, LookupError):
        plain = Metadata.apply_metadata_heuristic(Metadata(), {}, {}, folder, n_weights)
        writer = _filled(folder, architecture, plain)
    largest = max(tensors.values(), key=lambda t: t.size)
    writer.add_file_type(_FILE_TYPES[largest.type])
    return dict(_values(writer))


def _filled(folder: Path, architecture: str, metadata: Metadata) -> GGUFWriter:
    """A writer that holds the metadata and will never write."""
    writer = GGUFWriter("", architecture)
    writer.add_type("model")
    metadata.name = str(metadata.name or folder.resolve().name)
    metadata.set_gguf_meta_model(writer)
    return writer


def _values(writer: GGUFWriter) -> Iterator[tuple[str, Value]]:
    """What the card says, without what GGUF cannot hold: anything may stand under "license"."""
    for key, value in writer.kv_data[0].items():
        is_list = value.type == GGUFValueType.ARRAY
        if is_list and not (value.value and all(isinstance(v, str) for v in value.value)):
            continue
        with suppress(AttributeError, TypeError, ValueError, OverflowError, struct.error):
            yield key, encode(value.value, GGUFValueType.STRING if is_list else value.type)
