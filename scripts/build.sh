#!/usr/bin/env bash
# Build dist/*.whl and dist/*.tar.gz, and try the wheel as a stranger would: a fresh environment with
# the core dependencies alone, none of llama.cpp's programs, another folder.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD model=$PWD/tests/data/novels-5m-f16.gguf text=$PWD/tests/data/novels-calib.txt
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
say() { printf -- '-- %s\n' "$*"; }

rm -rf dist
"${PYTHON:-python3}" -m build --outdir dist . >"$tmp/log" 2>&1 || { cat "$tmp/log"; exit 1; }
wheel=$(echo dist/*.whl) archive=$(echo dist/*.tar.gz)
say "$wheel: $(stat -c %s "$wheel") bytes; $archive: $(stat -c %s "$archive") bytes"
[ "$(stat -c %s "$archive")" -lt 2000000 ] || { echo "$archive: over 2 MB; is test data in it?"; exit 1; }
listing=$("${PYTHON:-python3}" -m zipfile -l "$wheel")
for part in py.typed models/huggingface/tokenizer/pretokenizers.json calibration/builtin.txt; do
    [[ $listing == *tqgguf/$part* ]] || { echo "$wheel lacks tqgguf/$part"; exit 1; }
done

say "a fresh environment with the core dependencies"
"${PYTHON:-python3}" -m venv "$tmp/venv"
"$tmp/venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt "$wheel"
cd "$tmp"
export PATH=$tmp/venv/bin:/usr/bin:/bin LLAMA_CPP_BIN=$tmp/none XDG_CACHE_HOME=$tmp/cache
python -c 'import sys, tqgguf; sys.exit(not tqgguf.__file__.startswith(sys.prefix))'
tqgguf --version
tqgguf --help >help.txt && grep -q quantize help.txt
tqgguf quantize "$model" -o quantized.gguf | tee said.txt
grep -q 'no text was used, as with --effort fast: llama-tokenize: not found' said.txt
tqgguf verify quantized.gguf "$model"

say "what needs an extra says which"
refuses() { ! "${@:2}" 2>&1 | tee said.txt && grep -qF "$1" said.txt; }
refuses 'tqgguf[llama]' tqgguf quantize "$model" --calibrate "$text" -o calibrated.gguf
refuses 'tqgguf[hf]' tqgguf quantize "$root/tests/data/novels-5m" -o folder.gguf
refuses 'tqgguf[plot]' tqgguf report mse "$model" --types Q4_K --plot error.svg
say "passed"
