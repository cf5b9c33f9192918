"""Sending a ladder to the hub."""

from collections.abc import Sequence
from glob import escape
from pathlib import Path

from tqgguf.errors import HubError
from tqgguf.models.download import hub_errors


def check_access(repo: str) -> None:
    """Refuse where the hub knows nobody who could write. Raises HubError."""
    with hub_errors(f"--upload {repo}", repo) as hub:
        if hub.get_token() is None:
            raise HubError(f"--upload {repo}: there is no token; hf auth login or set HF_TOKEN")


def send(repo: str, folder: Path, names: Sequence[str], *, quiet: bool = False) -> str:
    """Send files of a folder to a repository, made if it is not there; the commit's address.

    All of them arrive in one commit, or none. Raises HubError.
    """
    with hub_errors(f"--upload {repo}", repo, quiet=quiet) as hub:
        api = hub.HfApi()
        api.create_repo(repo, exist_ok=True)
        patterns = [escape(name) for name in names]
        done = api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=patterns)
    return str(done.commit_url)
