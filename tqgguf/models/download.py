"""Models on the hub: org/name, org/name@revision, hf://org/name@revision/file.gguf.

huggingface_hub (extra `hub`) does the work: its cache, its progress bars, its tokens ($HF_TOKEN, or
what `hf auth login` kept), its offline mode ($HF_HUB_OFFLINE) and its endpoint ($HF_ENDPOINT).
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from tqgguf.errors import HubError
from tqgguf.models.gguf import SHARD_NAME

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_NAME = re.compile(
    rf"(?P<scheme>hf:/{{1,2}})?(?P<repo>{_PART}/{_PART})(@(?P<revision>[^@/]+))?(/(?P<file>.+))?"
)
_FILES = (".gguf", ".safetensors")  # a name that ends so is a file of a local folder
# What a folder is converted from; nothing else of a repository is fetched.
_WANTED = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "README.md"]
_UNWANTED = ["*/*", "consolidated*", "adapter_model*"]


class HubName(NamedTuple):
    """A repository of the hub, a revision of it (None: main), a file in it (empty: the model)."""

    repo: str
    revision: str | None = None
    file: str = ""

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repo}{at}/{self.file}" if self.file else f"{self.repo}{at}"


def hub_name(text: str) -> HubName | None:
    """What a model's name means on the hub, or None where it can only be a path.

    A file in a repository needs hf://, or its name would be that of a local one. A Path makes
    hf:/ of it, which is taken too.
    """
    match = _NAME.fullmatch(text)
    if not match:
        return None
    if match["scheme"] is None and (match["file"] or text.endswith(_FILES)):
        return None
    return HubName(match["repo"], match["revision"], match["file"] or "")


def download(name: HubName, *, quiet: bool = False) -> Path:
    """The folder, or the file, of a model of the hub in its cache, fetched as far as needed.

    Raises HubError where there is no such repository, revision or file, no right to read it, or
    neither a connection nor a copy in the cache.
    """
    with hub_errors(str(name), name.repo, name.revision, quiet=quiet) as hub:
        wanted = [_pattern(name.file)] if name.file else _WANTED
        unwanted = None if name.file else _UNWANTED
        fetched = hub.snapshot_download(
            name.repo, revision=name.revision, allow_patterns=wanted, ignore_patterns=unwanted
        )
    folder = Path(fetched)
    if name.file:
        return _existing(folder, name)
    if not any(folder.glob("*.safetensors")):
        raise HubError(f"{name}: has no .safetensors file{_ggufs(name)}")
    return folder


def _pattern(file: str) -> str:
    """A pattern for a file, or for all shards of a split one."""
    shard = SHARD_NAME.match(file)
    plain = escape(shard["stem"] if shard else file)
    return f"{plain}-*-of-{shard['count']}.gguf" if shard else plain


def _existing(folder: Path, name: HubName) -> Path:
    path = folder / name.file
    if not path.exists():
        raise HubError(f"{name}: there is no such file{_ggufs(name)}")
    return path


def _ggufs(name: HubName) -> str:
    """The GGUF files of a repository, of which one could be meant."""
    with hub_errors(str(name), name.repo, name.revision) as hub:
        files = hub.HfApi().list_repo_files(name.repo, revision=name.revision)
    found = [file for file in files if file.endswith(".gguf")]
    at = f"@{name.revision}" if name.revision else ""
    return f"; it has hf://{name.repo}{at}/{found[0]}, {len(found)} GGUF files" if found else ""


@contextmanager
def hub_errors(
    what: str, repo: str, revision: str | None = None, *, quiet: bool = False
) -> Iterator[Any]:
    """The package huggingface_hub, its errors turned into HubError in one line.

    quiet: without its progress bars and its warnings.
    """
    hub, errors = _library(what, quiet=quiet)
    here = f"{what}: no such path here, and"
    try:
        yield hub
    except errors.GatedRepoError:
        lacks = "the token given has no access" if hub.get_token() else "there is no token"
        cure = "ask for access on its page, then hf auth login or set HF_TOKEN"
        raise HubError(f"{what}: {repo} is gated and {lacks}; {cure}") from None
    except errors.RevisionNotFoundError:
        known = "expected a branch, tag or commit"
        raise HubError(f"{what}: {repo} has no revision {revision}; {known}") from None
    except errors.RepositoryNotFoundError:
        lacks = "" if hub.get_token() else ", or a private one: hf auth login or set HF_TOKEN"
        raise HubError(f"{here} no repository {repo} on the hub{lacks}") from None
    except errors.LocalEntryNotFoundError:
        why = "the hub cannot be reached"
        raise HubError(f"{here} not all of it is in the hub's cache; {why}") from None
    except (errors.HTTPError, errors.HFValidationError, RuntimeError, OSError) as error:
        raise HubError(f"{what}: {_first_line(error)}") from error


def _library(what: str, *, quiet: bool) -> tuple[Any, Any]:
    """huggingface_hub and its errors."""
    try:
        hub = import_module("huggingface_hub")
        errors, utils = (import_module(f"huggingface_hub.{x}") for x in ("errors", "utils"))
    except ImportError:
        raise HubError(
            f"{what}: no such file or folder, and a name on the hub needs huggingface_hub: "
            "pip install 'tqgguf[hub]'"
        ) from None
    if quiet:
        utils.disable_progress_bars()
        utils.logging.set_verbosity_error()
    return hub, errors


def _first_line(error: Exception) -> str:
    """What a library's error says, without its advice of many lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
