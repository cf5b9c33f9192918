"""From a folder's tokenizer files to the keys tokenizer.*."""

from pathlib import Path

from tqgguf.errors import FileFormatError
from tqgguf.models.huggingface.architectures import Architecture
from tqgguf.models.huggingface.folder import Config
from tqgguf.models.huggingface.tokenizer.bpe import read_bpe
from tqgguf.models.huggingface.tokenizer.sentencepiece import read_sentencepiece
from tqgguf.models.huggingface.tokenizer.special import chat_templates, special_tokens
from tqgguf.models.huggingface.tokenizer.vocabulary import CURE, Vocabulary
from tqgguf.models.metadata import Value


def tokenizer_keys(folder: Path, config: Config, architecture: Architecture) -> dict[str, Value]:
    """Vocabulary, merges, special tokens and chat templates of a folder.

    Raises FileFormatError where the files are missing or contradict each other,
    UnsupportedModelError for a tokenizer that llama.cpp does not have.
    """
    vocabulary = _read(folder, config, architecture)
    return {
        **vocabulary.keys(),
        **special_tokens(folder, config, vocabulary),
        **chat_templates(folder),
    }


def _read(folder: Path, config: Config, architecture: Architecture) -> Vocabulary:
    size = config.count("vocab_size")
    if (folder / "tokenizer.model").is_file():
        return read_sentencepiece(folder, size, architecture.space_prefix)
    if (folder / "tokenizer.json").is_file():
        return read_bpe(folder, size)
    raise FileFormatError(f"{folder}: has no tokenizer.model and no tokenizer.json; {CURE}")
