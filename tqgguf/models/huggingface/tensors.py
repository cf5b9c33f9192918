"""From Hugging Face's tensors to GGUF's: names, order of rows, stacked experts; all of it lazy."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, TensorNameMap, get_tensor_name_map

from tqgguf.errors import FileFormatError, UnsupportedModelError
from tqgguf.models.huggingface.architecture import SIZES, Architecture
from tqgguf.models.huggingface.changes import stacked
from tqgguf.models.huggingface.folder import Config
from tqgguf.models.huggingface.mxfp4 import BLOCKS, SCALES, Mxfp4
from tqgguf.models.huggingface.stored import Stored
from tqgguf.models.model import Tensor

# Buffers, and scales of caches and activations, that no graph of llama.cpp takes.
_UNUSED = re.compile(
    r"rotary_emb\.inv_freq$|\.attn\.(bias|masked_bias)$|_extra_state$"
    r"|\.(input|output|k|v|activation)_(scale|zero_point|global_scale)$"
)
# Parts of a multimodal model, and what else is left out: a user is told.
_LEFT_OUT = {
    "the vision tower, which llama.cpp reads from a file of its own (mmproj)": re.compile(
        r"^(model\.)?(vision_tower|vision_model|vision_encoder|multi_modal_projector|visual|"
        r"embed_vision|patch_merger|vision_language_adapter)\."
    ),
    "the audio tower, which llama.cpp reads from a file of its own (mmproj)": re.compile(
        r"^(model\.)?(audio_tower|audio_model|embed_audio|audio_projector)\."
    ),
    "the layers that predict further tokens (MTP), without which the model runs": re.compile(
        r"^(model\.)?(mtp|mtp_layers|nextn)\."
    ),
}
_WRAPPERS = re.compile(r"^(model\.language_model\.|language_model\.model\.|model\.text_model\.)")
_BARE = re.compile(r"^(embed_tokens|layers\.\d+|norm)\.")  # saved without its head: no "model."
_LAYER = re.compile(r"^model\.layers\.(\d+)\.")
_EXPERT = re.compile(r"^(?P<head>.*\.experts)\.(?P<number>\d+)\.(?P<tail>.+)$")
_FUSED_EXPERTS = re.compile(
    r"^(?P<head>.*\.experts)\.(?P<part>gate_up_proj|down_proj)"
    r"(\.weight|(?P<bias>_bias))?$"
)
# llama.cpp loads these as F32 only.
_ALWAYS_F32 = ("ffn_gate_inp.weight", "position_embd.weight", "ssm_conv1d.weight", ".bias")
# Names that gguf-py's table knows otherwise.
_RENAMED = (
    (re.compile(r"e_score_correction_bias$"), "e_score_correction.bias"),
    (re.compile(r"\.dt_bias$"), ".dt_proj.bias"),
    (re.compile(r"\.sinks$"), ".sinks.weight"),
    (re.compile(r"\.block_sparse_moe\.input_linear\.weight$"), ".mlp.experts.gate_up_proj"),
    (re.compile(r"\.block_sparse_moe\.output_linear\.weight$"), ".mlp.experts.down_proj"),
    (re.compile(r"\.layer_scalar$"), ".layer_scalar.weight"),
    (re.compile(r"\.router\.scale$"), ".router.proj.scale"),
    (re.compile(r"\.router\.per_expert_scale$"), ".experts.down_proj.scale"),
)


def convert_tensors(
    weights: Mapping[str, Stored],
    config: Config,
    architecture: Architecture,
    note: Callable[[str], None],
) -> dict[str, Tensor]:
    """The model's tensors under their GGUF names, in the order of the graph.

    note is told what is left out. Raises FileFormatError for a tensor that is missing, unknown or
    of another shape than config.json says, UnsupportedModelError for a head that llama.cpp would
    not use.
    """
    if config.n_layer > len(weights):
        raise FileFormatError(
            f"{config.path}: claims {config.n_layer} layers, but the weights are "
            f"{len(weights)} tensors"
        )
    names = get_tensor_name_map(_model_arch(architecture.name), config.n_layer)
    packed = [blocks.tensor() for blocks in _mxfp4(weights)]
    sources = _stack_experts(_used(weights, config, architecture, note))
    tensors: dict[str, Tensor] = {}
    named = ((t.name, t) for t in packed)
    for name, tensor in chain(_transformed(sources, config, architecture), named):
        gguf_name = _gguf_name(names, name, architecture)
        if gguf_name in tensors:
            raise FileFormatError(f"{name}: a second tensor for {gguf_name}")
        tensors[gguf_name] = _stored_type(replace(tensor, name=gguf_name))
    _settle_head(tensors, config, architecture)
    _check_shapes(tensors, config, architecture)
    order = _graph_order(config, architecture)
    return {name: tensors[name] for name in order if name in tensors}


def _model_arch(name: str) -> MODEL_ARCH:
    return next(arch for arch, text in MODEL_ARCH_NAMES.items() if text == name)


def _used(
    weights: Mapping[str, Stored],
    config: Config,
    architecture: Architecture,
    note: Callable[[str], None],
) -> Iterator[Stored]:
    """The language model's tensors, without the wrapper of a multimodal model in their names."""
    left_out: Counter[str] = Counter()
    turned = _lie_turned(weights, config, architecture)
    for name, stored in weights.items():
        bare = _WRAPPERS.sub("model.", name).removeprefix("language_model.")
        bare = f"model.{bare}" if _BARE.match(bare) else bare
        part = _left_out(name, bare, config)
        if part is not None:
            left_out[part] += 1
        elif not (_UNUSED.search(name) or _is_mxfp4(name, weights)):
            yield from _unfused(_plain(replace(stored, name=bare)), architecture, turned=turned)
    for part, count in left_out.items():
        note(f"{config.path.parent}: left out {count} tensors: {part}")


def _plain(stored: Stored) -> Stored:
    """The tensor under the name that gguf-py knows; kernels over time and rows as what they are."""
    name = stored.name
    for pattern, known in _RENAMED:
        name = pattern.sub(known, name)
    array = stored.array
    if ".conv1d." in name and array.ndim == 3 and array.shape[1] == 1:
        array = array[:, 0]
    if stored.decoded is None and array.ndim == 2 and len(array) == 1:
        array = array[0]
    return replace(stored, name=name, array=array)


def _left_out(name: str, bare: str, config: Config) -> str | None:
    """The part of the model that a tensor belongs to, if that part is left out."""
    layer = _LAYER.match(bare)
    if layer and int(layer[1]) >= config.n_layer and _further_layers(config):
        return next(part for part in _LEFT_OUT if "MTP" in part)
    return next((part for part, names in _LEFT_OUT.items() if names.match(name)), None)


def _further_layers(config: Config) -> bool:
    """Whether layers that predict further tokens follow the model's own."""
    return bool(config.get("num_nextn_predict_layers", "mtp_num_hidden_layers"))


def _unfused(stored: Stored, architecture: Architecture, *, turned: bool) -> Iterator[Stored]:
    """Experts that transformers 5 keeps in one tensor, one by one as in released files.

    gate_up_proj: (n_expert, 2 n_ff, n_in), gate first; down_proj: (n_expert, n_in, n_ff). Of
    gpt-oss: gate and up taking turns, and with biases. turned: the last two axes are exchanged.
    """
    match = _FUSED_EXPERTS.match(stored.name)
    if not match or stored.array.ndim + bool(match["bias"]) != 3 or stored.decoded is not None:
        yield stored
        return
    array = stored.array
    array = array.swapaxes(1, 2) if turned and not match["bias"] else array
    parts = _parts(match["part"], array.shape[1], architecture)
    if match["bias"]:
        for part, columns in parts.items():
            yield replace(stored, name=f"{match['head']}.{part}.bias", array=array[:, columns])
        return
    for number, expert in enumerate(array):
        for part, rows in parts.items():
            name = f"{match['head']}.{number}.{part}.weight"
            yield replace(stored, name=name, array=expert[rows])


def _lie_turned(weights: Mapping[str, Stored], config: Config, architecture: Architecture) -> bool:
    """Whether the rows of fused experts lie along the last axis.

    Released files of Qwen3-VL have it so, and what transformers 5 saves of it has not; where a
    width equals another, the other of the two tensors tells.
    """
    if not architecture.experts_may_turn:
        return architecture.experts_take_turns
    widths = {"down_proj": "M", "gate_up_proj": "E"}
    matches = ((_FUSED_EXPERTS.match(name), stored.array) for name, stored in weights.items())
    return any(
        array.ndim == 3 and array.shape[2] != SIZES[widths[match["part"]]](config)
        for match, array in matches
        if match
    )


def _parts(part: str, rows: int, architecture: Architecture) -> dict[str, slice]:
    """Which rows of a fused tensor belong to which matrix."""
    if part == "down_proj" or architecture.experts_stay_fused:
        return {part: slice(None)}
    if architecture.experts_take_turns:
        return {"gate_proj": slice(0, None, 2), "up_proj": slice(1, None, 2)}
    return {"gate_proj": slice(0, rows // 2), "up_proj": slice(rows // 2, None)}


def _is_mxfp4(name: str, weights: Mapping[str, Stored]) -> bool:
    stem = name.removesuffix(BLOCKS).removesuffix(SCALES)
    return stem != name and {stem + BLOCKS, stem + SCALES} <= weights.keys()


def _mxfp4(weights: Mapping[str, Stored]) -> Iterator[Mxfp4]:
    """Experts whose MXFP4 blocks stay as they are, gate and up taking turns as gpt-oss has them."""
    for name, stored in weights.items():
        stem = name.removesuffix(BLOCKS)
        match = _FUSED_EXPERTS.match(stem)
        if not match or stem == name or stem + SCALES not in weights:
            continue
        whole = Mxfp4(stem, stored.array, weights[stem + SCALES].array)
        parts = {"gate_proj": slice(0, None, 2), "up_proj": slice(1, None, 2)}
        if match["part"] == "down_proj":
            parts = {"down_proj": slice(None)}
        for part, rows in parts.items():
            yield whole.rows_of_each(f"{match['head']}.{part}.weight", rows)


def _stack_experts(stored: Iterator[Stored]) -> Iterator[tuple[str, Stored | list[Tensor]]]:
    """Tensors by name; the experts of a layer, numbered 0, 1 ... in their names, as one list."""
    experts: dict[str, dict[int, Tensor]] = {}
    for item in stored:
        match = _EXPERT.match(item.name)
        if match:
            name = f"{match['head']}.{match['tail']}"
            experts.setdefault(name, {})[int(match["number"])] = item.tensor()
        else:
            yield item.name, item
    for name, by_number in experts.items():
        if sorted(by_number) != list(range(len(by_number))):
            raise FileFormatError(f"{name}: experts {sorted(by_number)[:9]} ... have gaps")
        yield name, [by_number[i] for i in range(len(by_number))]


def _transformed(
    sources: Iterator[tuple[str, Stored | list[Tensor]]],
    config: Config,
    architecture: Architecture,
) -> Iterator[tuple[str, Tensor]]:
    for name, source in sources:
        if isinstance(source, list):
            yield name, stacked(source)
            continue
        if architecture.transposed and architecture.transposed.search(name):
            source = _turned(source)
        tensor = source.tensor()
        for pattern, change in architecture.changes:
            if pattern.search(name):
                tensor = change(tensor, config)
        split = next((f for pattern, f in architecture.splits if pattern.search(name)), None)
        yield from [(t.name, t) for t in split(tensor, config)] if split else [(name, tensor)]


def _turned(stored: Stored) -> Stored:
    if stored.decoded is not None:
        raise UnsupportedModelError(f"{stored.name}: quantized weights that are stored transposed")
    return replace(stored, array=stored.array.T)


def _gguf_name(names: TensorNameMap, name: str, architecture: Architecture) -> str:
    gguf_name: str | None = names.get_name(name, (".weight", ".bias", ".scale"))
    if name == "lm_head.weight":
        gguf_name = "output.weight"
    if gguf_name is None or gguf_name.removesuffix(".bias") == name:
        raise FileFormatError(f"{name}: no such tensor in the {architecture.name} graph")
    return gguf_name


def _stored_type(tensor: Tensor) -> Tensor:
    """Vectors, routers and position tables as F32, which is all that llama.cpp takes for them."""
    if tensor.type != "F32" and (len(tensor.shape) < 2 or tensor.name.endswith(_ALWAYS_F32)):
        return tensor.derived(tensor.rows, type="F32")
    return tensor


def _settle_head(tensors: dict[str, Tensor], config: Config, architecture: Architecture) -> None:
    """Drop an output head that only repeats the embedding."""
    tied = config.get("tie_word_embeddings")
    if "output.weight" not in tensors:
        if tied is False and not architecture.always_tied and _has_head(config):
            raise FileFormatError(
                f"{config.path}: the head is not tied, but lm_head.weight is absent"
            )
    elif tied or (tied is None and architecture.always_tied):
        del tensors["output.weight"]
    elif architecture.always_tied:
        raise UnsupportedModelError(
            f"{config.path}: lm_head.weight is not tied to the embedding, but llama.cpp's "
            f"{architecture.name} graph reads the embedding in its place"
        )


def _has_head(config: Config) -> bool:
    """Whether the class is a language model; an embedding model (Qwen3Model) has no head."""
    return not str(config.get("architectures")[0]).endswith("Model")


def _check_shapes(
    tensors: Mapping[str, Tensor], config: Config, architecture: Architecture
) -> None:
    """Every tensor the graph needs is there, and all have the shape that config.json implies."""
    expected = dict(_expected_shapes(config, architecture))
    for name, (shape, required) in expected.items():
        if name not in tensors:
            if required:
                raise FileFormatError(
                    f"{config.path.parent}: no weights for {name}, which a {architecture.name} "
                    f"model of {config.n_layer} layers needs"
                )
        elif tensors[name].shape != shape:
            raise FileFormatError(
                f"{config.path.parent}: {name} has shape {tensors[name].shape}, but config.json "
                f"implies {shape}"
            )
    unknown = [name for name in tensors if name not in expected]
    if unknown:
        raise FileFormatError(
            f"{config.path.parent}: {unknown[0]} is not part of a {architecture.name} model of "
            f"{config.n_layer} layers"
        )


def _expected_shapes(
    config: Config, architecture: Architecture
) -> Iterator[tuple[str, tuple[tuple[int, ...], bool]]]:
    kinds = [architecture.layer_kind(config, layer) for layer in range(config.n_layer)]
    for pattern, specs in architecture.tensors.items():
        places = range(config.n_layer) if "{}" in pattern else [0]
        for spec in specs.split("|"):
            letters = [word for word in spec.split() if word.isalnum()]
            only = {word[1:] for word in spec.split() if word.startswith("@")}
            having = [i for i in places if not only or only & set(kinds[i].split())]
            shape = tuple(SIZES[letter](config) for letter in letters) if having else ()
            yield from ((pattern.format(layer), (shape, "?" not in spec)) for layer in having)


def _graph_order(config: Config, architecture: Architecture) -> list[str]:
    """All names the model may have: embeddings, blocks in order, then the head."""
    outside = [name for name in architecture.tensors if "{}" not in name]
    inside = [name for name in architecture.tensors if "{}" in name]
    first = [name for name in outside if "embd" in name]
    blocks = [name.format(layer) for layer in range(config.n_layer) for name in inside]
    return [*first, *blocks, *(name for name in outside if name not in first)]
