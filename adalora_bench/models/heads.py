"""What is put on top of a body, and the parts of the tiny random backbones. Imports torch and transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerFast

IGNORE = -100
"""In `target_ids`: nothing is to be predicted here."""


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


class TokenLogits(nn.Module):
    """Dropout and one linear layer on every token, for spans.

    Args:
        body: returns `last_hidden_state` (n, length, hidden).
        outputs: width of the logits; 2 for start and end.
        dropout: in front of the linear layer.
    """

    def __init__(self, body: Any, *, outputs: int, dropout: float) -> None:
        super().__init__()
        if getattr(body, "pooler", None) is not None:
            body.pooler = None  # its output would not be used
        self.body = body
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(body.config.hidden_size, outputs)

    def forward(self, **inputs: Tensor) -> Tensor:
        """The body's inputs, (n, length) each -> logits (n, length, outputs)."""
        logits: Tensor = self.head(self.dropout(self.body(**inputs).last_hidden_state))
        return logits


class TextModel(nn.Module):
    """A causal or sequence-to-sequence language model that gives logits only where a token is to be predicted.

    The product with the vocabulary is the most expensive one of a small model. Most positions (prompt, padding) need
    none.

    Args:
        body: `AutoModelForCausalLM` or `AutoModelForSeq2SeqLM` of transformers. A sequence-to-sequence one must know
            its `decoder_start_token_id`.
    """

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body
        self.seq2seq = bool(body.config.is_encoder_decoder)
        if self.seq2seq:
            start = body.generation_config.decoder_start_token_id
            self.start_id: int = body.config.decoder_start_token_id if start is None else start
        # what a published checkpoint says of decoding must not slip in where a task's settings are silent
        body.generation_config = GenerationConfig()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, target_ids: Tensor) -> Tensor:
        """Logits (m, vocabulary) of the m targets, row by row.

        Args:
            input_ids, attention_mask: (n, length); of a decoder prompt and answer, else of the encoder's text.
            target_ids: decoder (n, length), the token that stands at each position; sequence-to-sequence (n, answer).
                IGNORE where nothing is to be predicted.
        """
        stack = getattr(self.body, self.body.base_model_prefix)
        if self.seq2seq:
            hidden = stack(
                input_ids=input_ids,
                attention_mask=attention_mask,
                decoder_input_ids=self._shifted(target_ids),
                use_cache=False,
            ).last_hidden_state[target_ids != IGNORE]
        else:  # the vector of a token predicts the next one
            states = stack(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False
            ).last_hidden_state
            hidden = states[:, :-1][target_ids[:, 1:] != IGNORE]
        logits: Tensor = self.body.get_output_embeddings()(hidden)
        bias = getattr(self.body, "final_logits_bias", None)  # BART
        return logits if bias is None else logits + bias

    def generate(self, input_ids: Tensor, attention_mask: Tensor, settings: Any, **more: Any) -> Tensor:
        """Token ids (n, length) as transformers gives them: a decoder's begin with the prompt."""
        if self.seq2seq:
            settings.decoder_start_token_id = self.start_id
        ids: Tensor = self.body.generate(
            input_ids=input_ids, attention_mask=attention_mask, generation_config=settings, **more
        )
        return ids

    def _shifted(self, target_ids: Tensor) -> Tensor:
        first = torch.full_like(target_ids[:, :1], self.start_id)
        before = torch.cat([first, target_ids[:, :-1]], 1)
        # behind the last target any token will do: nothing is read there
        return before.masked_fill(before == IGNORE, self.start_id)


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
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_input_names=inputs if architecture == "roberta" else [*inputs, "token_type_ids"],
    )
