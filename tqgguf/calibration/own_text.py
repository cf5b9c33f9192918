"""A text that the model writes itself: calibration without data (LLM-QAT, arXiv 2305.17888).

Passages begin with words of the model's own vocabulary, so they are in its languages.
"""

from random import Random

import numpy as np

from tqgguf.calibration.kept import Arrays, keep
from tqgguf.errors import UnsupportedModelError
from tqgguf.llamacpp.writer import write_passages
from tqgguf.machine.cache import user_cache
from tqgguf.machine.content import content_key
from tqgguf.models import Model, model_files

OWN = "a text of the model's own"
WRITTEN_TOKENS = 1 << 14  # llama.cpp writes a few dozen a second of a model of 7 B weights
_PASSAGE = 512  # tokens
_SPACES = ("\u0120", "\u2581")  # how vocabularies spell the space before a word
_VERSION = 1  # of what is kept


def own_text(model: Model, *, tokens: int | None = None, threads: int | None = None) -> bytes:
    """Some `tokens` tokens (None: DEFAULT_TOKENS) that llama.cpp has the model write, in UTF-8.

    What a model wrote once is kept. Raises UnsupportedModelError for what llama.cpp cannot read or
    a vocabulary without words, ToolError where no llama.cpp is at hand.
    """
    if model.path.suffix != ".gguf":
        raise UnsupportedModelError(
            f"{model.path}: --calibrate self has llama.cpp write the text, which reads GGUF files "
            "alone; make one first: tqgguf quantize MODEL --type f16 --rotate none"
        )
    count = -(-(tokens or WRITTEN_TOKENS) // _PASSAGE)
    starts = _starts(model, count)
    key = content_key(model_files(model.path), _VERSION, starts)

    def written() -> Arrays:
        passages, _ = write_passages(model.path, starts, tokens=_PASSAGE, threads=threads)
        return [np.frombuffer("\n\n".join(passages).encode(), np.uint8)]

    (data,) = keep(user_cache() / "texts", key, "own", written)
    return data.tobytes()


def _starts(model: Model, count: int) -> list[str]:
    """Words that begin a sentence, drawn from the vocabulary."""
    known = model.get("tokenizer.ggml.tokens", [])
    spelt = (t[1:] for t in known if isinstance(t, str) and t[:1] in _SPACES)
    words = sorted({w for w in spelt if len(w) > 1 and w.isascii() and w.isalpha() and w.istitle()})
    if not words:
        raise UnsupportedModelError(
            f"{model.path}: --calibrate self begins with words of the vocabulary, and it has none; "
            "give a text"
        )
    return Random(0).choices(words, k=count)
