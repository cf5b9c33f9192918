"""A rotation in words, for people who choose a file."""

from tqgguf.rotation.rotation import Rotation

_EXACT = "undone inside the network, which computes the same"


def in_words(rotation: Rotation) -> str:
    """What was done to the weights, in one sentence without a full stop."""
    value = f"the values of each attention head by Hadamard matrices of {rotation.value_block}"
    turned = [f"the residual stream is turned by Hadamard matrices of {rotation.block}"]
    turned += [value] if rotation.value_block else []
    sentences = {
        "none": "the weights are as they were",
        "scales": f"channels are scaled, {_EXACT}",
        "values": f"channels are scaled and {value} turned, {_EXACT}",
        "fused": f"{', '.join(turned)}, {_EXACT}",
        "tensor": f"every matrix alone is turned by Hadamard matrices of {rotation.block}; "
        "llama.cpp would compute noise from it",
    }
    return f"{rotation.mode}: {sentences[rotation.mode]}"
