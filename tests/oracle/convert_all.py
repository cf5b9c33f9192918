"""Run llama.cpp's official converter over many folders in one process: torch loads once.

    python convert_all.py CONVERTER JOBS

JOBS: a JSON list of {"folder", "output", "pre", "drops_mtp", "dense"}. drops_mtp: leave MTP layers
out, as we do. dense: convert what follows an embedding's pooling. A byte-level tokenizer that was
trained for a test is not in the converter's table of hashes; it gets the name "pre".
Prints {output: error or null}.
"""

import json
import sys
import traceback
from pathlib import Path


def main() -> None:
    converter, jobs = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    sys.path[:0] = [str(converter.parent / "gguf-py"), str(converter.parent)]
    import convert_hf_to_gguf
    from conversion.base import TextModel

    known = TextModel.get_vocab_base_pre

    def pre(self, tokenizer):
        try:
            return known(self, tokenizer)
        except NotImplementedError:
            return job["pre"]

    TextModel.get_vocab_base_pre = pre
    errors = {}
    for job in jobs:
        sys.argv = ["convert", job["folder"], "--outtype", "f32", "--outfile", job["output"]]
        sys.argv += ["--no-nextn"] * job["drops_mtp"]
        sys.argv += ["--sentence-transformers-dense-modules"] * job["dense"]
        try:
            convert_hf_to_gguf.main()
            errors[job["output"]] = None
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever another program raises
            errors[job["output"]] = f"{error!r}: {traceback.format_exc().splitlines()[-3]}"
    sys.stdout.write(json.dumps(errors))


if __name__ == "__main__":
    main()
