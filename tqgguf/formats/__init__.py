"""GGUF tensor types, one module each. To add one, add one module."""
