"""The two ends of a network: the token embedding and the output head, which may be one tensor."""

from tqgguf.errors import UnsupportedModelError
from tqgguf.models.model import Model

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
HEADS = ("output", "cls.output")  # of a language model, and of a reranker


def tied_head(model: Model) -> bool:
    """Whether the output head is the token embedding, so that a fold must untie it."""
    return HEAD not in model.tensors and EMBEDDING in model.tensors


def embedding_width(model: Model) -> int:
    """The width of the stream. Raises UnsupportedModelError where there is no embedding."""
    if EMBEDDING not in model.tensors:
        raise UnsupportedModelError(f"{model.path}: {EMBEDDING} is missing; use --rotate none")
    return model.tensors[EMBEDDING].n_in
