"""Folders that hold no model this converter reads: what they are instead, and the cure."""

import re
from collections.abc import Iterator
from pathlib import Path

from tqgguf.errors import FileFormatError, UnsupportedModelError
from tqgguf.models.hub import repositories, repository_folder, snapshot
from tqgguf.models.huggingface.folder import read_json

_SHARD = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors$")
_OTHER_WEIGHTS = ("*.bin", "*.pth", "*.pt", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.nemo")
_AGAIN = "download the model again"
_READ = (".json", ".safetensors", ".model", ".jinja", ".txt")
_SAVE = "save the model again with transformers' save_pretrained, which writes .safetensors"


def check_source(path: Path) -> None:
    """Raise FileFormatError or UnsupportedModelError for a folder or file that is no whole model.

    path: a folder, or a .safetensors file in one.
    """
    folder = path if path.is_dir() else path.parent
    _check_shard(path)
    _check_links(folder)
    looks = (_adapter, _own_format, _hub_repository, _unfinished, _diffusion, _gguf, _other_weights)
    for problem in (look(folder) for look in looks):
        if problem:
            raise UnsupportedModelError(f"{path}: {problem}")


def _check_shard(path: Path) -> None:
    shard = _SHARD.search(path.name)
    if shard and path.is_file() and int(shard["count"]) > 1:
        raise FileFormatError(
            f"{path}: shard {int(shard['number'])} of {int(shard['count'])}; give the folder, "
            f"{path.parent}"
        )


def _check_links(folder: Path) -> None:
    """The hub's cache is made of links, which outlive a blob that was deleted or never came."""
    read = (p for p in sorted(folder.glob("*")) if p.suffix in _READ)
    broken = next((p for p in read if p.is_symlink() and not p.exists()), None)
    if broken:
        raise FileFormatError(f"{broken}: a link to nothing; {_AGAIN}")


def _adapter(folder: Path) -> str | None:
    settings = folder / "adapter_config.json"
    if not settings.is_file() or any(_weights(folder)):
        return None
    base = read_json(settings).get("base_model_name_or_path")
    return (
        f"a LoRA adapter, no whole model; merge it into its base model, {str(base)[:80]}, with "
        "peft's merge_and_unload and give the folder saved from that"
    )


def _weights(folder: Path) -> Iterator[Path]:
    return (p for p in folder.glob("*.safetensors") if not p.name.startswith("adapter_"))


def _own_format(folder: Path) -> str | None:
    if _has_config(folder) or not (folder / "params.json").is_file():
        return None
    return (
        "weights in their author's own format (params.json); give the folder in Hugging Face's, "
        "with config.json and model.safetensors"
    )


def _hub_repository(folder: Path) -> str | None:
    repository = repository_folder(folder)
    others = [p for p in map(snapshot, repositories(folder)) if p]
    if _has_config(folder) or folder.parent.name == "snapshots":
        return None
    if repository is None:
        fact = f"a cache of {len(others)} models; give a snapshot of one, such as"
        return f"{fact} {others[0]}" if others else None
    found = snapshot(repository)
    if found is None:
        return f"a cached repository without a whole snapshot; {_AGAIN}"
    return f"a cached repository; give one of its snapshots, {found}"


def _unfinished(folder: Path) -> str | None:
    """A snapshot whose weights are still on their way, or never came."""
    repository = repository_folder(folder)
    parts = sorted((repository / "blobs").glob("*.incomplete")) if repository else []
    if not parts or any(_weights(folder)):
        return None
    return f"its download is not complete (blobs/{parts[0].name}); {_AGAIN}"


def _diffusion(folder: Path) -> str | None:
    if _has_config(folder) or not (folder / "model_index.json").is_file():
        return None
    return "a diffusion pipeline (model_index.json); expected a language model"


def _gguf(folder: Path) -> str | None:
    files = sorted(folder.glob("*.gguf"))
    if not files or any(_weights(folder)):
        return None
    more = f" (or one of {len(files) - 1} more)" if len(files) > 1 else ""
    return f"holds GGUF, no .safetensors; give the file, {files[0]}{more}"


def _other_weights(folder: Path) -> str | None:
    if not _has_config(folder) or any(_weights(folder)):
        return None
    found = next((p for glob in _OTHER_WEIGHTS for p in sorted(folder.glob(glob))), None)
    return f"has no .safetensors file, only {found.name}; {_SAVE}" if found else None


def _has_config(folder: Path) -> bool:
    return (folder / "config.json").is_file()
