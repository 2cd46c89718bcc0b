"""Mechanisms that mix the positions of feature maps."""
