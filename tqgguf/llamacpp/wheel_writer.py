"""Continue texts with the llama.cpp inside the wheel of xllamacpp.

A program: python -m tqgguf.llamacpp.wheel_writer MODEL STARTS PASSAGES TOKENS. STARTS is a JSON
list of texts, PASSAGES becomes one of them with what the model wrote behind; the seed is the index.
"""

import json
import sys
from pathlib import Path

from xllamacpp import CommonParams, Server


def main(model: str, starts: str, passages: str, tokens: str) -> None:
    """Have the passages written, one after the other."""
    params = CommonParams()
    params.model.path = model
    params.n_ctx = 2 * int(tokens)
    params.n_parallel = 1
    params.warmup = False
    server = Server(params)
    written = []
    for seed, start in enumerate(json.loads(Path(starts).read_text())):
        question = {"prompt": start, "max_tokens": int(tokens), "seed": seed, "ignore_eos": True}
        answer = server.handle_completions(question)
        written.append(start + answer["choices"][0]["text"])
    Path(passages).write_text(json.dumps(written))


if __name__ == "__main__":
    main(*sys.argv[1:])
