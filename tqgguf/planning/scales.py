"""Which matrices may have a scale of their own beside them, in a tensor NAME.scale.

llama.cpp loads such a tensor in every architecture, but it is the graph that multiplies by it: read
from src/models/ and llama-graph.cpp of the release inside llama-cpp-python 0.3.36, and proven in
tests/output/test_scales.py. A dense FFN with biases would multiply after the bias, and refuses.
"""

from collections.abc import Collection

from tqgguf.models.roles import role
from tqgguf.network.rows import ARCHITECTURES

_ATTENTION = frozenset({"attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output"})
_DENSE = frozenset({"ffn_gate", "ffn_up", "ffn_down"})
_NOT_ATTENTION = frozenset({"deepseek2", "qwen3next"})  # whose projections are of other kinds
_NOT_JOINED = frozenset({"qwen35", "qwen35moe"})
_GRAPHS = {  # of these, by the end of a role's name
    "": {"llama", "mistral3", "qwen3", "qwen35", "cohere2"},
    "_exps": {"llama", "mistral3", "qwen3moe", "qwen3next", "qwen35moe"},
    "_shexp": {"qwen3next", "qwen35moe"},
}


def may_be_scaled(architecture: str, name: str, names: Collection[str]) -> bool:
    """Whether the graph multiplies by NAME.scale what it computes with this matrix.

    names: of all the model's tensors.
    """
    kind = role(name)[0]
    if architecture not in ARCHITECTURES:
        return False
    if kind == "output":
        return True
    if kind in _ATTENTION:
        others = _NOT_ATTENTION | (_NOT_JOINED if kind == "attn_qkv" else frozenset())
        return architecture not in others
    for end, graphs in _GRAPHS.items():
        if kind in {f"{dense}{end}" for dense in _DENSE}:
            has_bias = not end and name.replace(".weight", ".bias") in names
            return architecture in graphs and not has_bias
    return False
