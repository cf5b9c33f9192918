"""Real llama.cpp in this process: log-probabilities and text for a GGUF file.

`logprobs` calls llama.cpp's C API, which the wheel of xllamacpp exports: every token of a text is
given (teacher forcing) and the whole vocabulary is read at every position, so that two files are
compared on the same tokens and nothing is cut off.
"""

import ctypes
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import xllamacpp

Tokens = str | Sequence[int]
_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class NotFiniteError(AssertionError):
    """A model whose logits are NaN or infinite."""


class _ModelParameters(ctypes.Structure):
    """llama_model_params, larger than any version of it: passed on as its defaults are."""

    _fields_ = (("words", ctypes.c_uint32 * 256),)


class _ContextParameters(ctypes.Structure):
    """llama_context_params of llama.h, larger than it; what is unnamed here keeps its default."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max")),
        *((name, ctypes.c_uint32) for name in ("n_rs_seq", "n_outputs", "n_outputs_per_seq")),
        *((name, ctypes.c_int32) for name in ("n_threads", "n_threads_batch", "ctx_type")),
        *((name, ctypes.c_int32) for name in ("rope_scaling", "pooling", "attention")),
        ("flash_attn_type", ctypes.c_int32),
        *((name, ctypes.c_float) for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext")),
        *((name, ctypes.c_float) for name in ("yarn_attn", "yarn_beta_fast", "yarn_beta_slow")),
        ("yarn_orig_ctx", ctypes.c_uint32),
        ("defrag_thold", ctypes.c_float),
        ("cb_eval", ctypes.c_void_p),
        ("cb_eval_user_data", ctypes.c_void_p),
        ("type_k", ctypes.c_int32),
        ("type_v", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("abort_callback", "abort_callback_data", "unnamed")),
        *((name, ctypes.c_bool) for name in ("embeddings", "offload_kqv", "no_perf")),
        *((name, ctypes.c_bool) for name in ("op_offload", "swa_full", "kv_unified")),
        ("rest", ctypes.c_uint32 * 256),
    )


_DEFAULTS: dict[str, float | None] = dict(  # they tell whether the struct is the one above
    n_ctx=512,
    n_batch=2048,
    n_ubatch=512,
    n_seq_max=1,
    n_rs_seq=0,
    rope_scaling=-1,
    pooling=-1,
    attention=-1,
    flash_attn_type=-1,
    rope_freq_base=0,
    yarn_ext=-1,
    yarn_orig_ctx=0,
    cb_eval=None,
    type_k=1,  # GGML_TYPE_F16
    type_v=1,
    offload_kqv=True,
    swa_full=True,
)


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


def logprobs(path: Path, tokens: Tokens) -> np.ndarray:
    """Log-probabilities after every token of a text: (n_tokens, n_vocab) float64.

    tokens: a text, or token ids, which are given to the model as they are (no BOS added). Row i is
    the distribution of the token after tokens[: i + 1].
    """
    with _model(path) as (lib, model):
        ids = tokenize(path, tokens) if isinstance(tokens, str) else list(tokens)
        logits = _logits(lib, model, ids)
    if not np.isfinite(logits).all():
        raise NotFiniteError(f"{path}: llama.cpp computed logits that are not finite")
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def embedding(path: Path, tokens: Sequence[int]) -> np.ndarray:
    """The vector that a text's become by the model's own pooling: (n_embd,) float64."""
    with _model(path) as (lib, model), _decoded(lib, model, list(tokens), embeddings=True) as made:
        pooled = lib.llama_get_embeddings_seq(made, 0)
        return np.ctypeslib.as_array(pooled, (lib.llama_model_n_embd(model),)).astype(np.float64)


def tokenize(path: Path, text: str) -> list[int]:
    """The token ids of a text, with BOS where the model's tokenizer adds one."""
    return tokenize_each(path, [text])[0]


def tokenize_each(path: Path, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of many texts, the model loaded once."""
    with _model(path) as (lib, model):
        vocab = lib.llama_model_get_vocab(model)
        return [_tokenize(lib, vocab, text.encode()) for text in texts]


def _tokenize(lib: ctypes.CDLL, vocab: int, text: bytes) -> list[int]:
    room = (ctypes.c_int32 * (len(text) + 8))()
    count = lib.llama_tokenize(vocab, text, len(text), room, len(room), True, True)
    return list(room[:count])


def cache_mib(path: Path, n_ctx: int) -> float:
    """MiB that llama.cpp takes for what a model's layers remember, by its own words."""
    said: list[str] = []
    listen = _LogCallback(lambda _, text, __: said.append(text.decode(errors="replace")))
    with _model(path) as (lib, model):
        params = _context_parameters(lib)
        params.n_ctx, params.swa_full = n_ctx, False  # as llama.cpp's programs have it
        lib.llama_log_set(listen, None)
        context = lib.llama_init_from_model(model, params)
        lib.llama_log_set(_keep_errors, None)
        lib.llama_free(context)
    return sum(map(float, re.findall(r"(?:KV|RS) buffer size = +([\d.]+) MiB", "".join(said))))


def generate(path: Path, prompt: Tokens, n_tokens: int) -> str:
    """The text that llama.cpp's server continues a prompt with, greedily."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 512
    params.warmup = False
    params.cpuparams.n_threads = 1
    answer = xllamacpp.Server(params).handle_completions(
        {"prompt": prompt if isinstance(prompt, str) else list(prompt), "max_tokens": n_tokens}
        | {"temperature": 0, "ignore_eos": True}
    )
    return answer["choices"][0]["text"]


def kl_divergence(reference: np.ndarray, other: np.ndarray) -> np.ndarray:
    """KL divergence of every position, (n_tokens,) float64, from two results of `logprobs`."""
    return (np.exp(reference) * (reference - other)).sum(axis=1)


@cache
def _library() -> ctypes.CDLL:
    lib = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    pointer, integer = ctypes.c_void_p, ctypes.c_int32
    lib.llama_log_set.argtypes = [_LogCallback, pointer]
    lib.llama_model_default_params.restype = _ModelParameters
    lib.llama_context_default_params.restype = _ContextParameters
    lib.llama_model_load_from_file.argtypes = [ctypes.c_char_p, _ModelParameters]
    lib.llama_init_from_model.argtypes = [pointer, _ContextParameters]
    for name in ("llama_model_load_from_file", "llama_init_from_model", "llama_model_get_vocab"):
        getattr(lib, name).restype = pointer
    for name in ("llama_model_get_vocab", "llama_vocab_n_tokens", "llama_free", "llama_model_free"):
        getattr(lib, name).argtypes = [pointer]
    lib.llama_tokenize.argtypes = [pointer, ctypes.c_char_p, integer, pointer, integer]
    lib.llama_tokenize.argtypes += [ctypes.c_bool, ctypes.c_bool]
    lib.llama_set_n_threads.argtypes = [pointer, integer, integer]
    lib.llama_batch_init.restype = _Batch
    lib.llama_batch_init.argtypes = [integer] * 3
    lib.llama_batch_free.argtypes = [_Batch]
    lib.llama_decode.argtypes = [pointer, _Batch]
    lib.llama_get_logits.argtypes = [pointer]
    lib.llama_get_embeddings_seq.argtypes = [pointer, integer]
    lib.llama_get_embeddings_seq.restype = ctypes.POINTER(ctypes.c_float)
    lib.llama_model_n_embd.argtypes = [pointer]
    lib.llama_get_logits.restype = ctypes.POINTER(ctypes.c_float)
    lib.llama_backend_init()
    return lib


_errors: list[str] = []


@_LogCallback
def _keep_errors(level: int, text: bytes, _: object) -> None:
    if level >= 4:  # GGML_LOG_LEVEL_ERROR
        _errors.append(text.decode(errors="replace").strip())


@contextmanager
def _model(path: Path) -> Iterator[tuple[ctypes.CDLL, int]]:
    """Load a model; raises AssertionError with llama.cpp's own words where it refuses."""
    lib = _library()
    _errors.clear()
    lib.llama_log_set(_keep_errors, None)
    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    if not model:
        raise AssertionError(f"llama.cpp refuses {path}: {' | '.join(_errors)}")
    try:
        yield lib, model
    finally:
        lib.llama_model_free(model)


def _logits(lib: ctypes.CDLL, model: int, ids: list[int]) -> np.ndarray:
    """All logits of one sequence: (n_tokens, n_vocab) float64."""
    n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    with _decoded(lib, model, ids) as context:
        shape = (len(ids), n_vocab)
        return np.ctypeslib.as_array(lib.llama_get_logits(context), shape).astype(np.float64)


@contextmanager
def _decoded(
    lib: ctypes.CDLL, model: int, ids: list[int], *, embeddings: bool = False
) -> Iterator[int]:
    """A context that has computed one sequence; embeddings: its pooled vector, not its logits."""
    params = _context_parameters(lib)
    params.n_ctx = params.n_batch = params.n_ubatch = len(ids)
    params.flash_attn_type = 0  # disabled: it computes in float16
    params.type_k = params.type_v = 0  # GGML_TYPE_F32
    params.embeddings = embeddings
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise AssertionError(f"llama.cpp gives no context: {' | '.join(_errors)}")
    batch = lib.llama_batch_init(len(ids), 0, 1)
    try:
        lib.llama_set_n_threads(context, 1, 1)
        _fill(batch, ids)
        if lib.llama_decode(context, batch) != 0:
            raise AssertionError(f"llama.cpp cannot decode: {' | '.join(_errors)}")
        yield context
    finally:
        lib.llama_batch_free(batch)
        lib.llama_free(context)


def _context_parameters(lib: ctypes.CDLL) -> _ContextParameters:
    """The defaults, if this llama.cpp has the fields where they are expected."""
    params = lib.llama_context_default_params()
    found = {name: getattr(params, name) for name in _DEFAULTS}
    if found != _DEFAULTS:
        version = xllamacpp.__version__
        raise AssertionError(
            f"llama_context_params of xllamacpp {version} is not the one that tests/llama.py "
            f"declares (constraints.txt names a version that has it): {found}"
        )
    return params


def _fill(batch: _Batch, ids: list[int]) -> None:
    """One sequence whose every position's logits are wanted."""
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
        batch.seq_id[i][0], batch.logits[i] = 0, 1
