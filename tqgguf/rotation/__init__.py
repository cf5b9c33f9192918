"""Folds that leave the network's function alone: what they do, to whom, how they are undone."""
