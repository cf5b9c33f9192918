#!/usr/bin/env bash
# Decode and prompt speed of GGUF models through llama-bench, our files beside llama-quantize's.
#
#   scripts/bench_e2e.sh model-f16.gguf model-TQ-Q4.gguf
#   scripts/bench_e2e.sh model-f16.gguf --baselines Q4_0,Q4_K_M,Q3_K_M,Q2_K --types tq-q4,tq-q3,tq-q2
#   scripts/bench_e2e.sh --help       rounds, threads, tokens, GPU layers; --json, --csv, --plot
#
# The thinking is tqgguf/llamacpp and tqgguf/measure/bench.py; this finds a Python that has tqgguf.
# llama-bench is looked for in $LLAMA_CPP_BIN, PATH and the cache of `make llama.cpp`.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if [[ -n ${PYTHON:-} ]]; then
  :
elif [[ -x $root/.venv/bin/python ]]; then
  PYTHON=$root/.venv/bin/python
elif command -v tqgguf >/dev/null; then
  exec tqgguf bench "$@" # exec: Ctrl-C reaches the one process that stops the others
else
  PYTHON=python3
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
"$PYTHON" -c 'import tqgguf.cli' 2>/dev/null || {
  echo "bench_e2e.sh: $PYTHON cannot import tqgguf; install it with: pip install $root" >&2
  exit 1
}
exec "$PYTHON" -m tqgguf bench "$@"
