"""The algorithms of the TurboQuant paper (arXiv 2504.19874)."""
