"""Tokenize a file with the llama.cpp inside the wheel of xllamacpp.

A program: python -m tqgguf.llamacpp.wheel VOCABULARY TEXT IDS. IDS becomes a JSON list. The wheel
offers tokenization by its server alone, so it is asked through this machine's loopback.
"""

import json
import os
import sys
from pathlib import Path
from typing import NoReturn
from urllib.request import ProxyHandler, Request, build_opener

from xllamacpp import CommonParams, Server


def main(vocabulary: str, text: str, ids: str) -> NoReturn:
    """Have the text tokenized, no control tokens read in it, write the ids and end this process."""
    params = CommonParams()
    params.model.path = vocabulary
    params.n_ctx = 32
    params.n_parallel = 1
    params.warmup = False
    params.fit_params = False
    server = Server(params)
    question = {
        "content": Path(text).read_bytes().decode(),
        "add_special": True,
        "parse_special": False,
    }
    request = Request(
        f"{server.listening_address}/tokenize",
        json.dumps(question).encode(),
        {"Content-Type": "application/json"},
    )
    with build_opener(ProxyHandler({})).open(request) as answer:  # no proxy on the way to ourselves
        Path(ids).write_text(json.dumps(json.load(answer)["tokens"]))
    os._exit(0)  # the server is never let go of: it was seen to wait for its threads for ever


if __name__ == "__main__":
    main(*sys.argv[1:])
