"""Backbones, heads and weights: what a method is attached to."""
