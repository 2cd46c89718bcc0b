"""Mechanisms on the channels of feature maps: `(batch, channels, *space)` in and out."""
