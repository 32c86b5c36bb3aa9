"""Figures, never tests: each is a median of at least ten, beside a baseline taken in the same run."""
