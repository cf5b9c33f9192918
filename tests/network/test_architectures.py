"""Every row of the forward pass against real llama.cpp, and every part of it against its absence.

The models are those that prove the fold (tests/tiny_models.py) and variants for what they do not
reach. Their gains are far from 1 and some channels are outliers, so that whatever is left out or
done in another order shows.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from tests.llama import logprobs
from tests.network.graphs import GRAPHS, architecture, write_graph
from tqgguf.models import Model, open_model
from tqgguf.network import delta_net, feed_forward, forward, ops
from tqgguf.network.graph import Graph, read_graph
from tqgguf.network.rows import ARCHITECTURES
from tqgguf.rotation import architectures as rotation_table

TOKENS = np.random.default_rng(1).integers(3, 512, 160)  # longer than any window, and a chunk
WINDOWED = ["gemma2", "gemma3-windowed", "gpt-oss", "cohere2-deep", "olmo2-windowed", "exaone4-32b"]


@pytest.fixture(autouse=True)
def gelu_from_a_table(monkeypatch):
    """llama.cpp looks GELU up by float16, which moves these models' outputs by up to 0.1."""

    def rounded(x: np.ndarray) -> np.ndarray:
        half = ops.gelu(x.astype(np.float16).astype(x.dtype)).astype(np.float16).astype(x.dtype)
        return np.where(x <= -10, 0, np.where(x >= 10, x, half)).astype(x.dtype)

    monkeypatch.setitem(feed_forward._ACTIVATIONS, "gelu", rounded)


@pytest.fixture(scope="module")
def proof(tmp_path_factory):
    """A graph's model and what llama.cpp computes for TOKENS, made once."""
    made: dict[str, tuple[Model, np.ndarray]] = {}

    def find(name: str) -> tuple[Model, np.ndarray]:
        if name not in made:
            path = write_graph(tmp_path_factory.mktemp("graph") / "model.gguf", name, 512)
            made[name] = open_model(path), logprobs(path, TOKENS.tolist())
        return made[name]

    return find


def difference(model: Model, expected: np.ndarray) -> float:
    """How far any log-probability is from llama.cpp's; infinite where the pass broke."""
    tokens = TOKENS[None, : len(expected)].astype(np.int32)
    with np.errstate(all="ignore"):
        ours = ops.log_softmax(forward.logits(model, tokens))[0]
    largest = float(np.abs(ours - expected).max())
    return largest if np.isfinite(largest) else np.inf


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_log_probabilities_match_llama_cpp(proof, name):
    assert difference(*proof(name)) < 1e-2


@pytest.mark.parametrize("name", WINDOWED)
def test_a_text_shorter_than_the_window(proof, name):
    model, expected = proof(name)
    graph = read_graph(model)
    assert 18 < max(graph.window(index) for index in range(graph.n_layer)) < len(TOKENS)
    assert difference(model, expected[:18]) < 1e-2


def test_every_architecture_that_can_be_rotated_has_a_forward_pass():
    assert set(ARCHITECTURES) == set(rotation_table.STREAMS)
    assert set(ARCHITECTURES) == {architecture(name) for name in GRAPHS}


Change = Callable[[Any, Model], Model]  # of the pass, through monkeypatch, and of the model


def numbers(**changed: Any) -> Change:
    """The same model with other numbers in its graph."""
    return graph(lambda found: replace(found, **changed))


def row(**changed: Any) -> Change:
    """The same model with another row."""
    return graph(lambda found: replace(found, row=replace(found.row, **changed)))


def table(name: str, **changed: Any) -> Change:
    """Another row where the metadata is read."""

    def apply(monkeypatch: Any, model: Model) -> Model:
        monkeypatch.setitem(ARCHITECTURES, name, replace(ARCHITECTURES[name], **changed))
        return model

    return apply


def windows(**changed: Any) -> Change:
    def other(found: Graph) -> Graph:
        return replace(found, row=replace(found.row, windows=replace(found.row.windows, **changed)))

    return graph(other)


def routing(**changed: Any) -> Change:
    return graph(lambda found: replace(found, routing=replace(found.routing, **changed)))


def graph(change: Callable[[Graph], Graph]) -> Change:
    def apply(monkeypatch: Any, model: Model) -> Model:
        monkeypatch.setattr(forward, "read_graph", lambda model: change(read_graph(model)))
        return model

    return apply


def without(*names: str) -> Change:
    """The model without the tensors that have one of these words in their names."""

    def apply(_: Any, model: Model) -> Model:
        kept = {n: t for n, t in model.tensors.items() if not any(w in n for w in names)}
        assert len(kept) < len(model.tensors)
        return replace(model, tensors=kept)

    return apply


def flat(*names: str) -> Change:
    """The model with all ones in these tensors."""

    def apply(_: Any, model: Model) -> Model:
        tensors = dict(model.tensors)
        for name in [n for n in tensors if any(w in n for w in names)]:
            ones = np.ones(tensors[name].shape, np.float32).reshape(-1, tensors[name].n_in)
            tensors[name] = replace(tensors[name], rows=lambda a, b, ones=ones: ones[a:b])
        return replace(model, tensors=tensors)

    return apply


def operation(module: Any, name: str, other: Callable[..., Any]) -> Change:
    def apply(monkeypatch: Any, model: Model) -> Model:
        monkeypatch.setattr(module, name, other)
        return model

    return apply


PARTS: dict[str, tuple[str, Change]] = {
    "the kind of norm": ("llama", row(norm="layer")),
    "the mean in LayerNorm": ("gpt2", row(norm="rms")),
    "norms without gain": ("olmo", row(gainless=False)),
    "the pairs of dimensions": ("llama", row(rope="halves")),
    "no pairs side by side": ("qwen3", row(rope="interleaved")),
    "rotary at all": ("llama", numbers(rotary=False)),
    "no rotary": ("granite-still", numbers(rotary=True)),
    "layers without rotary": ("smollm3-deep", row(no_rope_step=0)),
    "rotary in windowed layers alone": ("cohere2-deep", windows(rotary_elsewhere=True)),
    "sections": ("glm4-sections", row(sections="no")),
    "pairs that never turn": ("qwen3vl", row(sections="no")),
    "sections in turn": ("qwen3vl", row(sections="blocks")),
    "rotary factors": ("llama-biased", without("rope_freqs")),
    "long rotary factors": ("phi3-long", without("rope_factors_long")),
    "short rotary factors": ("phi3", without("rope_factors_short")),
    "YaRN's multiplier": ("mistral3-yarn", row(yarn_multiplier=0.0)),
    "YaRN's bounds": ("mistral3-yarn", table("mistral3", reads=())),
    "YaRN in scores": ("deepseek2-v3", row(yarn_scores=False)),
    "YaRN's other multiplier": ("deepseek2-yarn", row(yarn_multiplier=1.0)),
    "temperatures": ("mistral3", row(temperature_length="")),
    "temperatures of latents": ("deepseek2-large", row(temperature_length="")),
    "the window": ("gemma3-windowed", numbers(window_size=0)),
    "the window's exact size": ("gpt-oss", numbers(window_size=33)),
    "which layers have a window": ("gemma3-windowed", numbers(window_pattern=2)),
    "a list of windowed layers": ("gemma3-pattern", numbers(window_pattern=2)),
    "models too small for windows": ("exaone4-32b", numbers(window_size=0)),
    "the rotary base of windowed layers": ("gemma3-windowed", windows(base=None)),
    "no scaling of windowed layers": ("gemma3-windowed", windows(scaled=True)),
    "no YaRN in windowed layers": ("olmo2-windowed", windows(scaled=True)),
    "the cap of scores": ("gemma2-tight", numbers(score_cap=0.0)),
    "the cap of logits": ("gemma2-tight", numbers(logit_cap=0.0)),
    "the cap of scores by default": ("gemma2-by-default", numbers(score_cap=0.0)),
    "the cap of logits by default": ("gemma2-by-default", numbers(logit_cap=0.0)),
    "embeddings times the root of the width": ("gemma", numbers(embedding_scale=1.0)),
    "the embedding's scale": ("granite", numbers(embedding_scale=1.0)),
    "the residual's scale": ("granite", numbers(residual_scale=1.0)),
    "the scores' scale": ("granite", numbers(attention_scale=0.25)),
    "scores by the width": ("gemma2-27b", numbers(attention_scale=0.25)),
    "scores by the width again": ("gemma3-27b", numbers(attention_scale=0.25)),
    "logits that are divided": ("granite", numbers(logit_scale=2.0)),
    "logits that are multiplied": ("command-r", numbers(logit_scale=2.0)),
    "the norm on the attention's output": ("gemma3", without("post_attention_norm")),
    "the norm on the FFN's output": ("olmo2", without("post_ffw_norm")),
    "a norm with a misleading name": ("seed_oss", row(ffn_norm="ffn_norm")),
    "the norm of queries": ("qwen3", without("attn_q_norm")),
    "the norm of all keys together": ("olmo2", without("attn_k_norm")),
    "norms of heads of their own": ("command-r-plus", flat("attn_q_norm")),
    "biases of norms": ("nemotron", without("ffn_norm.bias")),
    "biases of RMSNorm": ("phimoe", without("ffn_norm.bias")),
    "biases": ("qwen2", without("attn_k.bias", "attn_q.bias")),
    "the clamp of projections": ("olmo-clamped", numbers(projection_clamp=0.0)),
    "the clamp of joined projections": ("mpt-clamped", numbers(projection_clamp=0.0)),
    "ALiBi": ("bloom", numbers(max_alibi_bias=0.0)),
    "ALiBi of heads between powers of two": (
        "mpt-six-heads",
        operation(ops, "alibi_slopes", lambda n, bias: 2.0 ** (-bias / n * np.arange(1, n + 1))),
    ),
    "sinks": ("gpt-oss", without("attn_sinks")),
    "the gate of the attention": ("qwen35", operation(ops, "sigmoid", lambda x: 0 * x + 0.5)),
    "an FFN beside the attention": ("phi2", row(parallel="no")),
    "an FFN beside it, as told": ("gptneox", numbers(parallel=False)),
    "an FFN behind it, as told": ("gptneox-sequential", numbers(parallel=True)),
    "an FFN beside it without a norm": ("stablelm-parallel", row(parallel="no")),
    "a second norm": ("falcon-40b", without("attn_norm_2")),
    "the norm behind the embedding": ("bloom", without("token_embd_norm")),
    "position embeddings": ("starcoder", without("position_embd")),
    "the head's bias": ("phi2", without("output.bias")),
    "SiLU": ("llama", row(activation="gelu")),
    "GELU": ("gpt2", row(activation="silu")),
    "squared ReLU": ("arcee", row(activation="silu")),
    "xIELU": ("apertus", numbers(xielu=(0.8, 0.6, 0.0, -1e-6))),
    "xIELU of each layer": ("apertus-by-layer", numbers(xielu=(0.8, 0.6, 0.5, -1e-6))),
    "the clamped gate": ("gpt-oss", row(activation="silu")),
    "the number of experts": ("llama-moe", routing(n_used=3)),
    "shares that sum to one": ("llama-moe", routing(renormalised=False)),
    "shares that do not": ("olmoe", routing(renormalised=True)),
    "sigmoid gates": ("glm4moe-by-default", routing(gating="softmax")),
    "softmax of the chosen": ("gpt-oss", routing(gating="softmax")),
    "the shares' scale": ("deepseek", routing(scale=1.0)),
    "a scale of shares that is not read": ("ernie4_5-moe", routing(scale=1.5)),
    "the bias that only chooses": ("dots1", without("exp_probs_b")),
    "groups of experts": ("bailingmoe2-groups", routing(n_groups=1)),
    "the number of groups": ("deepseek2-v3", routing(n_groups_used=3)),
    "the router's bias": ("gpt-oss", without("ffn_gate_inp.bias")),
    "the experts' biases": ("gpt-oss", without("ffn_down_exps.bias")),
    "the shared expert": ("deepseek2", without("_shexp")),
    "the shared expert's door": ("qwen2moe", without("ffn_gate_inp_shexp")),
    "the norm of the latent": ("deepseek2", flat("attn_kv_a_norm")),
    "the norm of the queries' latent": ("deepseek2-unsplit", flat("attn_q_a_norm")),
    "the short convolution": ("qwen35", operation(delta_net, "_convolved", lambda x, _: x)),
    "keys of unit length": ("qwen35", operation(ops, "unit", lambda x, _: x)),
    "decay": ("qwen35", operation(ops, "softplus", np.zeros_like)),
    "the time step's bias": ("qwen35", flat("ssm_dt")),
    "neighbours that share keys": (
        "qwen3next",
        operation(np, "repeat", lambda x, n, axis: np.concatenate([x] * n, axis=axis)),
    ),
    "heads that share keys": (
        "qwen35-groups",
        operation(np, "tile", lambda x, n: x.repeat(n[2], 2)),
    ),
    "layers that predict": ("glm4moe-predicting", numbers(n_layer=1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_missing_shows(monkeypatch, proof, part):
    name, change = PARTS[part]
    model, expected = proof(name)
    assert difference(change(monkeypatch, model), expected) > 1e-2


def test_every_field_of_a_row_is_proven():
    named = {f.name for f in fields(type(ARCHITECTURES["llama"]))}
    unproven = {
        f
        for f in named
        if all(getattr(r, f) == getattr(ARCHITECTURES["llama"], f) for r in ARCHITECTURES.values())
    }
    assert not unproven
