"""Every module imports where the system offers less than Linux does."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
IMPORT_ALL = """
import importlib, mmap, os, pkgutil, signal, sys
for module, name in {missing}:
    getattr(module, name)
    delattr(module, name)
for name in {modules}:
    sys.modules[name] = None
import tqgguf
for found in pkgutil.walk_packages(tqgguf.__path__, "tqgguf."):
    if found.name not in ("tqgguf.__main__", "tqgguf.llamacpp.wheel"):  # programs
        importlib.import_module(found.name)
"""
MACOS = ["(mmap, 'MADV_FREE')", "(os, 'posix_fallocate')", "(os, 'sched_getaffinity')"]
WINDOWS = [
    *MACOS,
    *(f"(signal, '{name}')" for name in ("SIGHUP", "SIGKILL", "SIGPIPE", "SIGALRM")),
    *(f"(os, '{name}')" for name in ("fork", "killpg", "pread", "pwrite", "sysconf", "getuid")),
    "(mmap, 'MADV_DONTNEED')",
]
SYSTEMS = {"macos": (MACOS, []), "windows": (WINDOWS, ["fcntl", "resource", "pwd", "termios"])}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="hides what other systems lack anyway")
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_module_imports_on(system):
    missing, modules = SYSTEMS[system]
    code = IMPORT_ALL.format(missing=f"[{', '.join(missing)}]", modules=modules)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
