"""Continue a prompt in real llama.cpp: python scripts/generate.py MODEL PROMPT."""

import sys

from xllamacpp import CommonParams, Server

TOKENS = 40


def continuation(path: str, prompt: str) -> str:
    """The greedy continuation of a prompt by the model at `path`."""
    params = CommonParams()
    params.model.path = path
    params.n_ctx = 256
    params.warmup = False
    answer = Server(params).handle_completions(
        {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
    )
    return str(answer["choices"][0]["text"])


if __name__ == "__main__":
    print(sys.argv[2] + continuation(sys.argv[1], sys.argv[2]))
