"""Pure NumPy: arrays in, arrays out. Imports nothing else from tqgguf but its errors."""
