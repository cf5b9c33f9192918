"""Who reads and who writes the residual stream, for every architecture that is known.

Each row was read from llama.cpp's graph of the architecture (src/models/<graph>.cpp, the release
inside llama-cpp-python 0.3.36), never guessed from tensor names: in some models `attn_post_norm` is
the norm before the FFN. Each is proven in tests/rotation/test_architectures.py: in real llama.cpp a
folded model computes the same, and one reader or writer forgotten is enough to break it.
"""

from dataclasses import replace

from tqgguf.rotation.stream import Stream

_SPLIT = ("attn_q", "attn_k", "attn_v")
_ATTENTION = (*_SPLIT, "attn_qkv")  # llama.cpp takes either from any file: rows q, k, v in order
_FFN = ("ffn_gate", "ffn_up")
_ROUTED = ("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps")
_SHARED = ("ffn_gate_shexp", "ffn_up_shexp")
_WRITERS = ("attn_output", "ffn_down")
_MOE_WRITERS = ("attn_output", "ffn_down", "ffn_down_exps")
_QK_NORMS = ("attn_q_norm", "attn_k_norm")
_ROPE = ("rope_freqs", "rope_factors_long", "rope_factors_short")
_POST_NORMS = ("post_attention_norm", "post_ffw_norm")
_BOTH = {"attn_norm": _ATTENTION, "ffn_norm": _FFN}
_AROUND = {"attn_norm": _ATTENTION, "post_attention_norm": _FFN}
_MISNAMED = "post_attention_norm is the norm before the FFN"
_POST_NORM_REASON = (
    "norms on the attention's and FFN's outputs scale each channel before it joins the stream"
)
_TIED_REASON = (
    "llama.cpp never loads an output head of its own, so output_norm's gain cannot be folded into "
    "one without changing the embedding"
)

_HEADS_REASON = "its graph takes the heads together to be as wide as the stream"
_EPSILON_REASON = "its delta net normalizes keys with the stream's epsilon, which a width changes"

_PROJECTOR_REASON = (
    "its image projector, a file of its own, writes to the stream and would not be rotated with it"
)

_QWEN35 = Stream(
    "qwen35",
    norms={
        "attn_norm": (*_ATTENTION, "attn_gate", "ssm_beta", "ssm_alpha"),
        "post_attention_norm": _FFN,
    },
    writers=("attn_output", "ssm_out", "ffn_down"),
    values=None,
    untouched=(*_QK_NORMS, "ssm_conv1d", "ssm_dt", "ssm_a", "ssm_norm"),
    why_no_values="the attention's output is gated channel by channel",
    note=f"{_MISNAMED}; delta-net layers read and write the stream too",
    no_padding=_EPSILON_REASON,
)
_QWEN35MOE = replace(
    _QWEN35,
    name="qwen35moe",
    norms=_QWEN35.norms
    | {"post_attention_norm": (*_ROUTED, "ffn_gate_up_exps", *_SHARED, "ffn_gate_inp_shexp")},
    writers=("attn_output", "ssm_out", "ffn_down_exps", "ffn_down_shexp"),
    note="qwen35 with qwen2moe's router, experts and shared expert",
)
_QWEN3NEXT = replace(
    _QWEN35MOE,
    name="qwen3next",
    norms=_QWEN35MOE.norms | {"attn_norm": (*_ATTENTION, "attn_gate", "ssm_in", "ssm_ba")},
    note="qwen35moe with projections that lie key by key",
)

_RMS_ROWS = (
    Stream(
        "llama",
        norms={"attn_norm": _ATTENTION, "ffn_norm": _FFN + _ROUTED + _SHARED},
        writers=(*_MOE_WRITERS, "ffn_down_shexp"),
        untouched=_ROPE,
        note="Llama 1-3, Mistral, Mixtral (experts), SmolLM",
    ),
    Stream(
        "mistral3",
        norms={"attn_norm": _ATTENTION, "ffn_norm": _FFN + _ROUTED + _SHARED},
        writers=(*_MOE_WRITERS, "ffn_down_shexp"),
        untouched=_ROPE,
        note="Mistral 3, Ministral: llama's graph, queries scaled by position",
    ),
    Stream(
        "granite",
        norms={"attn_norm": _ATTENTION, "ffn_norm": _FFN + _ROUTED + _SHARED},
        writers=(*_MOE_WRITERS, "ffn_down_shexp"),
        untouched=_ROPE,
        note="scalar multipliers on embedding, residual and logits commute with a rotation",
    ),
    Stream(
        "granitemoe",
        norms={"attn_norm": _ATTENTION, "ffn_norm": _FFN + _ROUTED + _SHARED},
        writers=(*_MOE_WRITERS, "ffn_down_shexp"),
        untouched=_ROPE,
        graph="granite-moe",
        note="granite's multipliers, a router and experts in place of the FFN",
    ),
    Stream("smollm3", norms=_BOTH, note="some layers without rotary embedding"),
    Stream("seed_oss", norms=_AROUND, note=_MISNAMED, graph="seed-oss"),
    Stream(
        "exaone",
        norms=_BOTH,
        untouched=_ROPE,
        note="llama's graph: two norms, each read by all that follows it",
    ),
    Stream(
        "internlm2",
        norms=_BOTH,
        note="llama's graph; the head is always a tensor of its own",
        no_padding=_HEADS_REASON,
    ),
    Stream(
        "ernie4_5",
        norms=_BOTH,
        graph="ernie4-5",
        note="llama's graph: two norms, each read by all that follows it",
    ),
    Stream(
        "ernie4_5-moe",
        norms={"attn_norm": _ATTENTION, "ffn_norm": _FFN + _ROUTED + _SHARED},
        writers=(*_MOE_WRITERS, "ffn_down_shexp"),
        untouched=("exp_probs_b",),
        graph="ernie4-5-moe",
        note="first layers dense; a shared expert reads the same norm",
    ),
    Stream(
        "arcee",
        norms={"attn_norm": _ATTENTION, "ffn_norm": ("ffn_up",)},
        untouched=_ROPE,
        note="an ungated FFN, whose squared ReLU forbids balancing its channels",
    ),
    Stream(
        "apertus",
        norms={"attn_norm": _ATTENTION, "ffn_norm": ("ffn_up",)},
        untouched=_QK_NORMS + _ROPE,
        note="an ungated FFN (xIELU); q and k are normalised after they have read the stream",
    ),
    Stream(
        "qwen",
        norms=_BOTH,
        note="q, k, v in one matrix with biases, of which R2 turns the value rows",
        no_padding=_HEADS_REASON,
    ),
    Stream(
        "qwen2",
        norms=_BOTH,
        note="biases on q, k and v; the value bias turns with R2",
        no_padding=_HEADS_REASON,
    ),
    Stream(
        "qwen2moe",
        norms={
            "attn_norm": _ATTENTION,
            "ffn_norm": (*_ROUTED, *_SHARED, "ffn_gate_inp_shexp"),
        },
        writers=("attn_output", "ffn_down_exps", "ffn_down_shexp"),
        note="the shared expert's gate, one row, reads the stream too",
        no_padding=_HEADS_REASON,
    ),
    Stream(
        "qwen3",
        norms=_BOTH,
        untouched=_QK_NORMS,
        note="q and k are normalised within heads, after they have read the stream; v is not",
    ),
    Stream(
        "qwen3moe",
        norms={"attn_norm": _ATTENTION, "ffn_norm": _ROUTED},
        writers=("attn_output", "ffn_down_exps"),
        untouched=_QK_NORMS,
        note="qwen3's attention; router and experts read the same norm",
    ),
    Stream(
        "olmoe",
        norms={"attn_norm": _ATTENTION, "ffn_norm": _ROUTED},
        writers=("attn_output", "ffn_down_exps"),
        untouched=_QK_NORMS,
        note="q and k are normalised over all heads, after they have read the stream; v is not",
        no_padding=_HEADS_REASON,
    ),
    Stream(
        "dots1",
        norms={"attn_norm": _ATTENTION, "ffn_norm": _FFN + _ROUTED + _SHARED},
        writers=(*_MOE_WRITERS, "ffn_down_shexp"),
        untouched=(*_QK_NORMS, "exp_probs_b"),
        note="first layers dense; exp_probs_b is added to probabilities, not to the stream",
    ),
    Stream(
        "bailingmoe2",
        norms={"attn_norm": _ATTENTION, "ffn_norm": _FFN + _ROUTED + _SHARED},
        writers=(*_MOE_WRITERS, "ffn_down_shexp"),
        untouched=(*_QK_NORMS, "exp_probs_b"),
        note="q, k, v in one matrix; first layers dense; a shared expert reads the same norm",
        no_padding=_HEADS_REASON,
    ),
    Stream(
        "deepseek",
        norms={"attn_norm": _ATTENTION, "ffn_norm": _FFN + _ROUTED + _SHARED},
        writers=(*_MOE_WRITERS, "ffn_down_shexp"),
        note="plain attention; first layers dense; shared experts read the same norm",
        no_padding=_HEADS_REASON,
    ),
    Stream(
        "glm4moe",
        norms={"attn_norm": _ATTENTION, "post_attention_norm": _FFN + _ROUTED + _SHARED},
        writers=(*_MOE_WRITERS, "ffn_down_shexp"),
        untouched=(*_QK_NORMS, "exp_probs_b"),
        note=_MISNAMED,
        graph="glm4-moe",
    ),
    Stream(
        "gpt-oss",
        norms={"attn_norm": _ATTENTION, "post_attention_norm": _ROUTED},
        writers=("attn_output", "ffn_down_exps"),
        untouched=("attn_sinks",),
        balanced=False,  # swiglu_oai clamps what comes from ffn_up and adds 1
        note=f"{_MISNAMED}; biases on every projection, the experts' too",
        graph="openai-moe",
    ),
    _QWEN35,
    _QWEN35MOE,
    _QWEN3NEXT,
    Stream(
        "phimoe",
        norms={"attn_norm": _ATTENTION, "ffn_norm": _ROUTED},
        writers=("attn_output", "ffn_down_exps"),
        untouched=_ROPE,
        note="RMSNorm with a bias: c becomes Q^T (c/g), as under LayerNorm",
        graph="phi3",
        no_padding=_HEADS_REASON,
    ),
    Stream(
        "phi3",
        norms={"attn_norm": _ATTENTION, "ffn_norm": ("ffn_up",)},
        untouched=_ROPE,
        note="q, k, v in one matrix, of which R2 turns the value rows; gate and up in one",
        no_padding=_HEADS_REASON,
    ),
    Stream(
        "deepseek2",
        norms={
            "attn_norm": ("attn_q", "attn_q_a", "attn_kv_a_mqa"),
            "ffn_norm": (*_FFN, *_ROUTED, "ffn_gate_up_exps", *_SHARED),
        },
        writers=(*_MOE_WRITERS, "ffn_down_shexp"),
        values=None,
        untouched=(
            *("attn_q_a_norm", "attn_q_b", "attn_kv_a_norm", "attn_kv_b"),
            *("attn_k_b", "attn_v_b", "exp_probs_b"),
        ),
        why_no_values="values are decompressed from a latent shared with the keys (MLA)",
        note="MLA: the stream alone; what follows the latent's own norms stays as it is",
    ),
)

_LAYER_ROWS = (
    Stream(
        "olmo",
        norms={"": _ATTENTION + _FFN},
        head_norm="",
        norm="layer",
        note="LayerNorm without gain or bias; a clamp on q, k, v (OLMo 7B) forbids R2",
    ),
    Stream(
        "stablelm",
        norms={"attn_norm": _ATTENTION + _FFN, "ffn_norm": _FFN},
        untouched=_QK_NORMS,
        norm="layer",
        note="without ffn_norm (StableLM 2 12B) the FFN reads attn_norm, in parallel",
    ),
    Stream(
        "starcoder2",
        norms={"attn_norm": _ATTENTION, "ffn_norm": _FFN},
        norm="layer",
        note="biases everywhere: those of the norms move into those of their readers",
    ),
    Stream(
        "gpt2",
        norms={"attn_norm": _ATTENTION, "ffn_norm": _FFN},
        embeddings=("token_embd", "position_embd"),
        norm="layer",
        note="position embeddings join the stream and turn with it",
    ),
    Stream(
        "starcoder",
        norms={"attn_norm": _ATTENTION, "ffn_norm": _FFN},
        embeddings=("token_embd", "position_embd"),
        norm="layer",
        note="GPT-2's graph with one key and value head; position embeddings turn with the stream",
    ),
    Stream(
        "nemotron",
        norms={"attn_norm": _ATTENTION, "ffn_norm": _FFN},
        norm="layer",
        note="converters add 1 to the gains (LayerNorm1P); squared ReLU, ungated",
    ),
    Stream(
        "gptneox",
        norms={"attn_norm": _ATTENTION, "ffn_norm": _FFN},
        norm="layer",
        note="GPT-NeoX, Pythia: two norms of the same stream, in parallel or in sequence",
    ),
    Stream(
        "falcon",
        norms={"attn_norm": _ATTENTION + _FFN, "attn_norm_2": _ATTENTION},
        norm="layer",
        note="the FFN reads attn_norm; attention reads attn_norm_2 where there is one (40B)",
    ),
    Stream(
        "phi2",
        norms={"attn_norm": _ATTENTION + _FFN},
        norm="layer",
        note="one norm feeds attention and FFN in parallel; the head's bias stays",
    ),
    Stream(
        "bloom",
        norms={"attn_norm": _ATTENTION, "ffn_norm": _FFN},
        embedding_norm="token_embd_norm",
        norm="layer",
        note="a norm behind the embedding: the table is rewritten so that its gain can be uniform",
    ),
    Stream(
        "mpt",
        norms={"attn_norm": _ATTENTION, "ffn_norm": _FFN},
        embeddings=("token_embd", "position_embd"),
        untouched=_QK_NORMS,
        norm="layer",
        note="norms with or without bias; a clamp on q, k, v forbids R2",
    ),
)

_REFUSED_ROWS = (
    Stream("gemma", norms=_BOTH, refusal=_TIED_REASON),
    Stream(
        "command-r",
        norms={"attn_norm": _ATTENTION + _FFN},
        untouched=_QK_NORMS,
        norm="layer",
        refusal=_TIED_REASON,
    ),
    Stream(
        "cohere2",
        norms={"attn_norm": _ATTENTION + _FFN},
        untouched=_ROPE,
        norm="layer",
        refusal=_TIED_REASON,
    ),
    Stream("qwen2vl", norms=_BOTH, refusal=_PROJECTOR_REASON),
    Stream("qwen3vl", norms=_BOTH, untouched=_QK_NORMS, refusal=_PROJECTOR_REASON),
    Stream(
        "qwen3vlmoe",
        norms={"attn_norm": _ATTENTION, "ffn_norm": _ROUTED},
        writers=("attn_output", "ffn_down_exps"),
        untouched=_QK_NORMS,
        refusal=_PROJECTOR_REASON,
    ),
    Stream(
        "gemma2",
        norms=_BOTH,
        untouched=_POST_NORMS,
        refusal=f"{_POST_NORM_REASON}; and {_TIED_REASON}",
    ),
    Stream(
        "gemma3",
        norms=_BOTH,
        untouched=_QK_NORMS + _POST_NORMS,
        refusal=_POST_NORM_REASON,
    ),
    Stream(
        "olmo2",
        norms={"": _ATTENTION + _FFN},
        untouched=_QK_NORMS + _POST_NORMS,
        refusal=_POST_NORM_REASON,
        note="no norm before a sub-layer at all",
    ),
    Stream(
        "glm4",
        norms={"attn_norm": _ATTENTION, "ffn_norm": ("ffn_up",)},
        untouched=_POST_NORMS,
        refusal=_POST_NORM_REASON,
    ),
    Stream(
        "exaone4",
        norms={"": _ATTENTION + _FFN},
        untouched=_QK_NORMS + _POST_NORMS + _ROPE,
        refusal=_POST_NORM_REASON,
        note="no norm before a sub-layer at all",
    ),
)

STREAMS: dict[str, Stream] = {row.name: row for row in (*_RMS_ROWS, *_LAYER_ROWS, *_REFUSED_ROWS)}
