"""A text, what it makes of a model's inputs, and rounding that minds it."""
