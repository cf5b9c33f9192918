"""The keys general.*: what the model is called, who made it, its licence, its sampling defaults."""

from collections.abc import Iterator, Mapping
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

    The heuristics are gguf-py's own, so that the names agree with other converters'.
    """
    writer = GGUFWriter("", architecture)
    writer.add_type("model")
    _metadata(folder, sum(t.size for t in tensors.values())).set_gguf_meta_model(writer)
    largest = max(tensors.values(), key=lambda t: t.size)
    writer.add_file_type(_FILE_TYPES[largest.type])
    return dict(_values(writer))


def _metadata(folder: Path, n_weights: int) -> Metadata:
    """A model card that is not YAML is left out: it is for people, not for the graph."""
    try:
        metadata = Metadata.load(None, folder, None, n_weights)
    except (YAMLError, UnicodeDecodeError):
        metadata = Metadata.apply_metadata_heuristic(Metadata(), {}, {}, folder, n_weights)
    metadata.name = metadata.name or folder.resolve().name
    return metadata


def _values(writer: GGUFWriter) -> Iterator[tuple[str, Value]]:
    for key, value in writer.kv_data[0].items():
        is_text = [isinstance(v, str) for v in value.value] if value.sub_type else []
        if value.type == GGUFValueType.STRING and not isinstance(value.value, str):
            continue  # a model card may put anything under "license"
        if all(is_text):
            yield key, encode(value.value, value.sub_type or value.type)
