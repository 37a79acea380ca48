"""What is put on top of a body, and the parts of the tiny random backbones. Imports torch and transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast


class MeanPooled(nn.Module):
    """Mean of the token vectors, dropout, one linear layer.

    Args:
        body: returns `last_hidden_state` (n, length, hidden).
        outputs: width of the logits.
        dropout: in front of the linear layer.
    """

    def __init__(self, body: Any, *, outputs: int, dropout: float) -> None:
        super().__init__()
        if getattr(body, "pooler", None) is not None:
            body.pooler = None  # its output would not be used
        self.body = body
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(body.config.hidden_size, outputs)

    def forward(self, attention_mask: Tensor, **inputs: Tensor) -> Tensor:
        """attention_mask (n, length) and the body's other inputs -> logits (n, outputs)."""
        hidden = self.body(attention_mask=attention_mask, **inputs).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weight).sum(1) / weight.sum(1)
        logits: Tensor = self.head(self.dropout(pooled))
        return logits


class LogitsOnly(nn.Module):
    """A transformers classification model that returns its logits (n, outputs) and nothing else."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, **inputs: Tensor) -> Tensor:
        logits: Tensor = self.body(**inputs).logits
        return logits


def random_model(auto: Any, config: Any, seed: int = 0) -> Any:
    """A model with random weights that depend on `seed` alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return auto.from_config(config)


def byte_tokenizer(architecture: str) -> PreTrainedTokenizerFast:
    """One token per byte and four special ones: reads any text and needs no file (vocabulary of 260)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {
        token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=inputs if architecture == "roberta" else [*inputs, "token_type_ids"],
    )
