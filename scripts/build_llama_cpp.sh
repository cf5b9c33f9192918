#!/usr/bin/env bash
# Build llama.cpp's programs from the source inside the PyPI sdist llama-cpp-python, once, into the
# user's cache, and keep its converter of Hugging Face folders there; prints where the programs are.
# Needs a C++ compiler, Python 3 and pip's package index.
#
#   scripts/build_llama_cpp.sh           build unless already built
#   scripts/build_llama_cpp.sh converter the converter alone: nothing is compiled; prints its path
#   CMAKE_ARGS=-DGGML_CUDA=ON scripts/build_llama_cpp.sh     ... with more of CMake's options
set -euo pipefail

readonly version=0.3.36 # the same as VERSION in tqgguf/llamacpp/tools.py
readonly checksum=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
readonly programs=(llama-bench llama-quantize llama-perplexity llama-imatrix llama-gguf-split
  llama-completion llama-tokenize)
readonly converter=(convert_hf_to_gguf.py conversion gguf-py models LICENSE)
readonly home="${XDG_CACHE_HOME:-$HOME/.cache}/tqgguf/llama.cpp-$version"
readonly python="${PYTHON:-python3}"

say() { printf '%s\n' "$*" >&2; }
fail() {
  say "build_llama_cpp.sh: $*"
  exit 1
}

complete() {
  local program
  for program in "${programs[@]}"; do
    [[ -x $home/bin/$program ]] || return 1
  done
}

has_converter() {
  [[ -f $home/convert_hf_to_gguf.py && -d $home/conversion && -d $home/gguf-py/gguf ]]
}

need() {
  command -v "$1" >/dev/null || fail "$1 not found; $2"
}

# A compiler flag, if the compiler knows it.
flag() {
  if "${CXX:-c++}" -Werror "$1" -x c++ -c /dev/null -o /dev/null 2>/dev/null; then printf '%s ' "$1"; fi
}

fetch() {
  say "fetching the source of llama-cpp-python $version"
  "$python" -m venv "$work/venv"
  pip=("$work/venv/bin/python" -m pip --quiet --disable-pip-version-check)
  "${pip[@]}" download --no-deps --no-binary llama-cpp-python -d "$work" "llama-cpp-python==$version"
  local sdist=$work/llama_cpp_python-$version.tar.gz
  "$python" - "$sdist" "$checksum" <<'PYTHON' || fail "$sdist: not the file this script was written for"
import hashlib, sys
raise SystemExit(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest() != sys.argv[2])
PYTHON
  tar -xzf "$sdist" -C "$work" "llama_cpp_python-$version/vendor/llama.cpp"
}

# What builds it, where the system has none.
fetch_builders() {
  command -v cmake >/dev/null || "${pip[@]}" install cmake
  command -v ninja >/dev/null || "${pip[@]}" install ninja
  PATH=$PATH:$work/venv/bin
}

# llama.cpp logs from a thread of its own that dies with the program, often before the last lines
# are out: llama-perplexity loses its results. A program that lingers a moment loses nothing; what it
# has printed itself is out before, so that nobody has to wait for its end.
linger() {
  printf '%s\n' '#include <stdio.h>' '#include <unistd.h>' \
    '__attribute__((destructor)) static void linger(void) { fflush(NULL); usleep(100000); }' \
    >"$work/linger.c"
  "${CC:-cc}" -c "$work/linger.c" -o "$work/linger.o" || fail "${CC:-cc} does not compile C"
}

build() {
  local source=$work/llama_cpp_python-$version/vendor/llama.cpp flags more=()
  # Some virtual CPUs advertise AMX and fault on its tiles, so the programs do not use it.
  flags="$(flag -mno-amx-tile)$(flag -mno-amx-int8)$(flag -mno-amx-bf16)"
  linger
  read -ra more <<<"${CMAKE_ARGS:-}"
  cmake -S "$source" -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_CURL=OFF \
    -DLLAMA_OPENSSL=OFF -DGGML_NATIVE=ON -DCMAKE_C_FLAGS="$flags" -DCMAKE_CXX_FLAGS="$flags" \
    -DCMAKE_EXE_LINKER_FLAGS="$work/linger.o" "${more[@]}" >"$work/log" 2>&1 || broken
  say "building ${programs[*]}: about ten minutes on two cores"
  cmake --build "$work/build" --target "${programs[@]}" >>"$work/log" 2>&1 || broken
}

broken() {
  tail -n 20 "$work/log" >&2
  fail "llama.cpp's build failed (above)"
}

# Complete or absent: each part is moved to its name when it is whole, the program to run last.
install_converter() {
  local part source=$work/llama_cpp_python-$version/vendor/llama.cpp
  mkdir -p "$home"
  for part in "${converter[@]:1}" "${converter[0]}"; do
    [[ -e $source/$part && ! -e $home/$part ]] || continue
    mv -T "$source/$part" "$home/$part" 2>/dev/null || [[ -e $home/$part ]] || fail "$home: cannot write"
  done
  has_converter || fail "the source of $version lacks its converter"
}

# Complete or absent: the folder gets its name when everything is in it.
install_programs() {
  local program
  mkdir -p "$work/home/bin"
  for program in "${programs[@]}"; do cp "$work/build/bin/$program" "$work/home/bin/"; done
  if ! complete; then
    mkdir -p "$home"
    rm -rf "${home:?}/bin"
    mv "$work/home/bin" "$home/bin"
  fi
}

begin() {
  need "$python" "it makes the build's environment"
  mkdir -p "$(dirname "$home")"
  work=$(mktemp -d "$home.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  trap 'exit 130' INT TERM HUP
  fetch
}

if [[ ${1:-} == converter ]]; then
  if ! has_converter; then
    begin
    install_converter
  fi
  printf '%s\n' "$home/convert_hf_to_gguf.py"
  exit
fi

if complete; then
  say "already built"
else
  need "${CC:-cc}" "install a C compiler (gcc or clang)"
  need "${CXX:-c++}" "install a C++ compiler (g++ or clang++)"
  begin
  fetch_builders
  build
  install_programs
  has_converter || install_converter
fi
printf '%s\n' "$home/bin"
