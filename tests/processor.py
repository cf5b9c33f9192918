"""What this machine's processor can do, by NumPy's own detection, and how to hide some of it.

Run as a script, it prints the value of NPY_DISABLE_CPU_FEATURES that makes this NumPy work as it
does on a processor without AVX-512; nothing where there is nothing to hide.
"""

from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

NEEDS = {"Haswell": "AVX2", "SkylakeX": "AVX512_SKX", "Sandybridge": "AVX", "Prescott": "SSE3"}


def can_run(kernel: str) -> bool:
    """Whether OpenBLAS' kernels of this name run here; it does not ask before it uses them."""
    return __cpu_features__.get(NEEDS[kernel], False)


def without_avx512() -> str:
    """NumPy's loops for AVX-512 that run here; the names differ between NumPy's versions."""
    loops = [name for name in __cpu_dispatch__ if name.startswith("AVX512") or name == "X86_V4"]
    return " ".join(name for name in loops if __cpu_features__.get(name))


if __name__ == "__main__":
    print(without_avx512())  # noqa: T201
