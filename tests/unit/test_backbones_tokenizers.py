"""Tokenizers of published weights: DeBERTaV3's sentencepiece file, and models that were trained without padding."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import sentencepiece
from backbone_helpers import backbone

from adalora_bench.data.sources import Found
from adalora_bench.models.heads import byte_tokenizer

SENTENCES = (
    "the boat froze a river",
    "one lamp wall",
    "the sun warms the old river",
    "rivers run cold in winter",
)
# A ligature, full width, blanks that are none of ASCII, an accent of its own.
OTHER_LETTERS = (
    "\ufb01nd a river",
    "\uff54\uff48\uff45 river",
    "old\u00a0river\u3000wall",
    "the\u200briver",
    "cafe\u0301",
)


@pytest.fixture
def deberta(tmp_path: Path) -> tuple[Found, sentencepiece.SentencePieceProcessor]:
    """A folder as microsoft/deberta-v3-base has it: no tokenizer.json, special tokens at 0 to 3, [MASK] not in it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 4),
        model_writer=model,
        model_type="unigram",
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
        num_threads=1,
        minloglevel=2,
    )
    (tmp_path / "spm.model").write_bytes(model.getvalue())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deberta-v2"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "vocab_type": "spm"}))
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return Found("local", tmp_path, {}, "a folder"), processor


def test_deberta_v3_reads_its_sentencepiece_file(
    deberta: tuple[Found, sentencepiece.SentencePieceProcessor],
) -> None:
    found, processor = deberta
    tokenizer = backbone("deberta_v3_base").tokenizer(found)
    for text in (*SENTENCES, "The riverboat, 1 lamp!", "two  blanks\nand a line ", "", *OTHER_LETTERS):
        ids = tokenizer(text)["input_ids"]
        assert ids == [1, *processor.encode(text), 2], text
    pair = tokenizer("old river", "cold wall")
    first, second = processor.encode("old river"), processor.encode("cold wall")
    assert pair["input_ids"] == [1, *first, 2, *second, 2]
    assert pair["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    assert tokenizer.pad_token_id == 0
    assert tokenizer.mask_token_id == processor.get_piece_size()
    assert tokenizer.decode(tokenizer(SENTENCES[0])["input_ids"], skip_special_tokens=True) == SENTENCES[0]


def test_a_tokenizer_without_padding_pads_with_its_end_token(tmp_path: Path) -> None:
    """As GPT-2's and LLaMA's."""
    published = byte_tokenizer("gpt2")
    published.pad_token = None
    published.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_positions": 96}))
    tokenizer = backbone("gpt2_medium").tokenizer(Found("local", tmp_path, {}, "a folder"))
    assert tokenizer.pad_token == tokenizer.eos_token == "[SEP]"
    assert tokenizer.model_max_length == 96
