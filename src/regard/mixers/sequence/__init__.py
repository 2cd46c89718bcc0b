"""Mechanisms on sequences: `(batch, tokens, dim)` in and out."""
