"""Weights: our checkpoint, foreign checkpoints, published ones, downloads."""
