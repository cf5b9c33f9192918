"""The keys general.*: what the model is called, who made it, its licence, its sampling defaults."""

import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from gguf import GGUFValueType, GGUFWriter, LlamaFileType, Metadata
from gguf.utility import size_label
from yaml import YAMLError

from tqgguf.models.hub import cached_repository, display_name
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
        writer = _filled(folder, architecture, tensors, _metadata(folder, n_weights))
    except (YAMLError, AttributeError, TypeError, ValueError, LookupError):
        named = Path(display_name(folder))
        plain = Metadata.apply_metadata_heuristic(Metadata(), {}, {}, named, n_weights)
        writer = _filled(folder, architecture, tensors, plain)
    largest = max(tensors.values(), key=lambda t: t.size)
    writer.add_file_type(_FILE_TYPES[largest.type])
    return dict(_values(writer))


def _metadata(folder: Path, n_weights: int) -> Metadata:
    """What card, config.json and the folder's name say, or in the hub's cache the repository's."""
    loaded = Metadata.load(None, folder, None, n_weights)
    repository = cached_repository(folder)
    if repository is None:
        return loaded
    card, settings = Metadata.load_model_card(folder), Metadata.load_hf_parameters(folder)
    named = Metadata.apply_metadata_heuristic(
        Metadata(), card, settings, Path(repository.name), n_weights
    )
    if named.organization is None and repository.organization:
        organization = Metadata.id_to_title(repository.organization)  # type: ignore[no-untyped-call]
        named.organization = organization
    sampling = {k: v for k, v in vars(loaded).items() if k.startswith("sampling_")}
    return replace(named, **sampling)


def _filled(
    folder: Path, architecture: str, tensors: Mapping[str, Tensor], metadata: Metadata
) -> GGUFWriter:
    """A writer that holds the metadata and will never write."""
    writer = GGUFWriter("", architecture)
    writer.add_type("model")
    metadata.name = str(metadata.name or display_name(folder))
    metadata.size_label = metadata.size_label or _size_label(tensors)
    metadata.set_gguf_meta_model(writer)
    return writer


def _size_label(tensors: Mapping[str, Tensor]) -> str:
    """The number of weights in words such as 135M or, with experts, 8x7B."""
    experts = [t for t in tensors.values() if "_exps." in t.name and len(t.shape) > 2]
    total = sum(t.size for t in tensors.values())
    counts, per_expert = [t.shape[-3] for t in experts], sum(t.size // t.shape[-3] for t in experts)
    shared = total - sum(t.size for t in experts)
    return size_label(total, shared, per_expert, sum(counts) // len(counts) if counts else 0)


def _values(writer: GGUFWriter) -> Iterator[tuple[str, Value]]:
    """What the card says, without what GGUF cannot hold: anything may stand under "license"."""
    for key, value in writer.kv_data[0].items():
        is_list = value.type == GGUFValueType.ARRAY
        if is_list and not (value.value and all(isinstance(v, str) for v in value.value)):
            continue
        with suppress(AttributeError, TypeError, ValueError, OverflowError, struct.error):
            yield key, encode(value.value, GGUFValueType.STRING if is_list else value.type)
