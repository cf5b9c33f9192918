"""The algorithms of the TurboQuant paper (arXiv 2504.19874), batched over vectors."""

from tqgguf.turboquant.cache import KVCache
from tqgguf.turboquant.codebooks import Codebook, gaussian_codebook, sphere_codebook
from tqgguf.turboquant.quantizers import Compressed, TurboQuantMSE, TurboQuantProd

__all__ = [
    "Codebook",
    "Compressed",
    "KVCache",
    "TurboQuantMSE",
    "TurboQuantProd",
    "gaussian_codebook",
    "sphere_codebook",
]
