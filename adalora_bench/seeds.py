"""One seed per purpose, so that two methods with the same seed see the same data order and the same head."""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, purpose: str, *numbers: int) -> int:
    """A 63-bit seed for one purpose ("order", "head", "adapter", ...) and optional counters (the epoch)."""
    text = ":".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *numbers: int, device: str = "cpu") -> torch.Generator:
    """A fresh generator for that purpose."""
    return torch.Generator(device=device).manual_seed(derive(seed, purpose, *numbers))
