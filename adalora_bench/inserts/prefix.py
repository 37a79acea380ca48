"""Learned keys and values in front of those of an attention, on every architecture that the project knows.

BERT, RoBERTa, GPT-2, LLaMA and BART ask transformers' AttentionInterface for their attention function: ours puts the
prefix of the calling module in front and delegates to the scaled dot product. That is behind the cache, so a cache
holds real tokens only, every step of a generation sees the prefix once, and positions are not shifted.
DeBERTa-v2 computes its attention itself: a wrapper adds the columns of the prefix, which have no relative position.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from adalora_bench.errors import UserError
from adalora_bench.inserts.bottleneck import replace_module, width_of
from adalora_bench.models.fused import SplitProjection

IMPLEMENTATION = "adalora_bench_prefix"
"""The name under which transformers knows our attention function."""
INTERFACE = ("bert", "roberta", "gpt2", "llama", "bart")
"""Architectures that ask the AttentionInterface."""
OWN_ATTENTION = "deberta-v2"


class Prefix(nn.Module):
    """Keys and values (heads, length, head width) that every query of one attention may attend to.

    Args:
        keys, values: initial numbers; as many heads as the attention's keys have (LLaMA-like: fewer than queries).
        dropout: on keys and values.
    """

    def __init__(self, keys: Tensor, values: Tensor, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.keys = nn.Parameter(keys)
        self.values = nn.Parameter(values)
        self.dropout = nn.Dropout(dropout)
        self.enabled = True

    def forward(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values, and what is added to the scores of the prefix (a scalar), or None for 0."""
        return self.dropout(self.keys), self.dropout(self.values), None


@dataclass(frozen=True)
class Site:
    """One attention of a model.

    Attributes:
        name: of its module.
        key, value: its projections; the layers themselves.
        heads, width: of keys and values.
    """

    name: str
    key: nn.Module
    value: nn.Module
    heads: int
    width: int


def sites(model: nn.Module, modules: Mapping[str, str]) -> list[Site]:
    """Every attention of the model, in its order.

    Raises:
        UserError: the architecture is none of those that this module knows.
    """
    architecture = getattr(getattr(getattr(model, "body", None), "config", None), "model_type", None)
    if architecture not in (*INTERFACE, OWN_ATTENTION):
        raise UserError(
            f"prefixes and prompts work on {', '.join((*INTERFACE, OWN_ATTENTION))}, not on {architecture}."
        )
    found = []
    keys = [name for name, role in modules.items() if role == "k"]
    values = [name for name, role in modules.items() if role == "v"]
    for k, v in zip(keys, values, strict=True):
        owner = k.rpartition(".")[0]
        if isinstance(model.get_submodule(owner), SplitProjection):  # GPT-2
            owner = owner.rpartition(".")[0]
        attention, key = model.get_submodule(owner), model.get_submodule(k)
        width = getattr(attention, "attention_head_size", None) or attention.head_dim
        assert isinstance(width, int)
        heads = width_of(key, out=True) // width
        found.append(Site(owner, key, model.get_submodule(v), heads, width))
    return found


def attach_prefix(model: nn.Module, site: Site, prefix: nn.Module) -> None:
    """Let an attention see a prefix: a module whose call gives what `Prefix` gives, with a switch `enabled`."""
    attention = model.get_submodule(site.name)
    if hasattr(attention, "disentangled_attention_bias"):
        replace_module(model, site.name, PrefixedDisentangled(attention, prefix))
        return
    AttentionInterface.register(IMPLEMENTATION, attend)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    attention.prefix = prefix
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and config._attn_implementation != IMPLEMENTATION:
            config._attn_implementation = IMPLEMENTATION


def remove_prefix(model: nn.Module, site: Site) -> None:
    """The attention as it was."""
    attention = model.get_submodule(site.name)
    if isinstance(attention, PrefixedDisentangled):
        replace_module(model, site.name, attention.base)
    else:
        del attention.prefix


def prefixes(model: nn.Module) -> Iterator[Prefix]:
    """Every `Prefix` of the model."""
    return (module for module in model.modules() if isinstance(module, Prefix))


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention with the prefix of `module`, where it has one.

    Args:
        query: (n, heads, q, width).
        key, value: (n, heads of keys, k, width), cached ones included.
        attention_mask: (n, 1, q, k), booleans or numbers to add; None leaves `is_causal` (or the module's) to decide.
        more: scaling and dropout, handed on.
    """
    prefix = getattr(module, "prefix", None)
    if prefix is None or not prefix.enabled:
        return sdpa_attention_forward(module, query, key, value, attention_mask, is_causal=is_causal, **more)
    keys, values, bias = prefix()
    n, q, k = key.shape[0], query.shape[2], key.shape[2]
    if attention_mask is None and q > 1:
        causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
        if causal:  # the last query stands at the last key
            ones = torch.ones(1, 1, q, k, dtype=torch.bool, device=key.device)
            attention_mask = ones.tril(k - q)
    mask = extended(attention_mask, keys.shape[1], bias, like=query[:1, :1, :, :1].expand(1, 1, q, k))
    return sdpa_attention_forward(
        module, query, in_front(keys, key, n), in_front(values, value, n), mask, is_causal=False, **more
    )


def in_front(own: Tensor, others: Tensor, n: int) -> Tensor:
    """(heads, m, width) in front of (n, heads, k, width) -> (n, heads, m + k, width)."""
    return torch.cat([own.to(others.dtype).expand(n, -1, -1, -1), others], dim=2)


def extended(mask: Tensor | None, length: int, bias: Tensor | None, *, like: Tensor) -> Tensor | None:
    """A mask with `length` columns on the left that all may see, or whose scores get `bias`.

    Args:
        mask: (n, 1, q, k), booleans (True may see) or numbers to add; None: all may see all.
        like: gives (1, 1, q, k) and the dtype where a mask of numbers is made.
    """
    if bias is None:
        if mask is None:
            return None
        return nn.functional.pad(mask, (length, 0), value=True if mask.dtype == torch.bool else 0.0)
    if mask is None:
        mask = torch.zeros_like(like)
    elif mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill(~mask, -math.inf)
    left = bias.to(mask.dtype).expand(*mask.shape[:-1], length)
    return torch.cat([left, mask], dim=-1)


class PrefixedDisentangled(nn.Module):
    """The self-attention of DeBERTa-v2 with a prefix in front: scores q k / sqrt(width * terms), no relative term.

    One softmax runs over prefix and tokens. `base` keeps its parameters and does the relative part.
    """

    def __init__(self, base: nn.Module, prefix: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.prefix = prefix

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states (n, length, hidden) -> the same shape; the mask is (n, 1, length, length)."""
        base: Any = self.base
        if not self.prefix.enabled:
            whole: tuple[Tensor, Tensor | None] = base(
                hidden_states, attention_mask, output_attentions, query_states, relative_pos, rel_embeddings
            )
            return whole
        asked = hidden_states if query_states is None else query_states
        heads, n = base.num_attention_heads, hidden_states.shape[0]
        q, k, v = (
            base.transpose_for_scores(layer(x), heads)  # (n * heads, length, width)
            for layer, x in (
                (base.query_proj, asked),
                (base.key_proj, hidden_states),
                (base.value_proj, hidden_states),
            )
        )
        terms = 1 + len({"c2p", "p2c"} & set(base.pos_att_type))
        root = math.sqrt(q.shape[-1] * terms)
        scores = q @ k.transpose(-1, -2) / root
        if base.relative_attention:
            relative = base.pos_dropout(rel_embeddings)
            scores = scores + base.disentangled_attention_bias(q, k, relative_pos, relative, terms)
        q, v, scores = (x.unflatten(0, (n, heads)) for x in (q, v, scores))
        scores = scores.masked_fill(~attention_mask.bool(), torch.finfo(scores.dtype).min)
        keys, values, bias = self.prefix()
        before = q @ keys.to(q.dtype).transpose(-1, -2) / root
        if bias is not None:
            before = before + bias.to(before.dtype)
        shares = base.dropout(torch.cat([before, scores], dim=-1).softmax(dim=-1))
        context = shares @ in_front(values, v, n)
        return context.transpose(1, 2).flatten(2), shares if output_attentions else None
