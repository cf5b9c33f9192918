"""From a folder's tokenizer files to the keys tokenizer.*."""

from collections.abc import Callable
from pathlib import Path

from tqgguf.errors import FileFormatError
from tqgguf.models.huggingface.architecture import Architecture
from tqgguf.models.huggingface.folder import Config
from tqgguf.models.huggingface.tokenizer.bpe import read_bpe
from tqgguf.models.huggingface.tokenizer.older import FILES
from tqgguf.models.huggingface.tokenizer.sentencepiece import not_sentencepiece, read_sentencepiece
from tqgguf.models.huggingface.tokenizer.special import chat_templates, special_tokens
from tqgguf.models.huggingface.tokenizer.vocabulary import CURE, Vocabulary
from tqgguf.models.metadata import Value


def tokenizer_keys(
    folder: Path, config: Config, architecture: Architecture, note: Callable[[str], None]
) -> dict[str, Value]:
    """Vocabulary, merges, special tokens and chat templates of a folder.

    note is told of a file that was passed over. Raises FileFormatError where the files are missing
    or contradict each other, UnsupportedModelError for a tokenizer that llama.cpp does not have.
    """
    vocabulary = _read(folder, config, architecture, note)
    return {
        **vocabulary.keys(),
        **special_tokens(folder, config, vocabulary, architecture.special),
        **chat_templates(folder),
    }


def _read(
    folder: Path, config: Config, architecture: Architecture, note: Callable[[str], None]
) -> Vocabulary:
    size = config.count("vocab_size")
    if architecture.merging is not None:
        return read_bpe(folder, size, architecture.merging)
    pieces, json = folder / "tokenizer.model", folder / "tokenizer.json"
    problem = not_sentencepiece(pieces) if pieces.is_file() else ""
    if pieces.is_file() and not problem:
        return read_sentencepiece(folder, size, architecture.space_prefix)
    if json.is_file():
        if problem:
            note(f"{pieces}: {problem}; its neighbour tokenizer.json is used instead")
        return read_bpe(folder, size)
    if all((folder / name).is_file() for name in FILES):
        return read_bpe(folder, size)
    if problem:
        raise FileFormatError(f"{pieces}: {problem}, and there is no tokenizer.json; {CURE}")
    raise FileFormatError(f"{folder}: has no tokenizer.model and no tokenizer.json; {CURE}")
