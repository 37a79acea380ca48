"""What the files of a folder of weights say of the model: blocks, positions, tokens, tensors. Imports no torch.

Read before anything is trained, so that a setting that does not fit these weights is refused at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adalora_bench.models import gguf_weights
from adalora_bench.store.files import tensor_shapes

BLOCKS = ("num_hidden_layers", "n_layer", "n_layers", "encoder_layers", "num_layers")
POSITIONS = ("max_position_embeddings", "n_positions", "max_source_positions")
USUAL_POSITIONS = {"bert": 512, "roberta": 512, "gpt2": 1024, "bart": 1024}
"""transformers' default where a configuration is silent."""


def configuration(folder: Path | None, own: Mapping[str, Any] | None) -> dict[str, Any]:
    """config.json of the weights, or the settings of a random backbone; {} where there is none that can be read."""
    if folder is None:
        return dict(own or {})
    if gguf_weights.holds_gguf(folder):
        return {}
    found = _json(folder / "config.json")
    return found if isinstance(found, dict) else {}


def blocks(config: Mapping[str, Any]) -> dict[str, int]:
    """Name of the setting -> transformer blocks, of each stack where encoder and decoder are two."""
    names = [name for name in (*BLOCKS, "decoder_layers") if isinstance(config.get(name), int)]
    if "encoder_layers" in names and "num_hidden_layers" in names:
        names.remove("num_hidden_layers")  # BART's files repeat the encoder's under this name
    return {name: config[name] for name in names}


def positions(config: Mapping[str, Any], architecture: str) -> int | None:
    """How many tokens of an input the position table holds; None where positions are relative or rotated."""
    if architecture in ("llama", "mistral", "gemma", "qwen2", "t5"):
        return None
    if architecture.startswith("deberta") and not config.get("position_biased_input", True):
        return None
    default = USUAL_POSITIONS.get(architecture)
    held = next((config[name] for name in POSITIONS if isinstance(config.get(name), int)), default)
    if held is None or held < 1:
        return None
    if architecture in ("roberta", "xlm-roberta", "camembert"):  # counted from behind the padding token
        pad = config.get("pad_token_id", 1)
        return int(held) - (pad if isinstance(pad, int) else 1) - 1
    return int(held)


def tokens(folder: Path) -> int | None:
    """One more than the largest number that the tokenizer's files give a token; None where they do not say."""
    numbers: list[int] = []
    whole = _json(folder / "tokenizer.json")
    if isinstance(whole, dict):
        model = whole.get("model")
        words = model.get("vocab") if isinstance(model, dict) else None
        numbers += _numbers(words)
        added = whole.get("added_tokens")
        numbers += [
            one["id"] for one in added or [] if isinstance(one, dict) and isinstance(one.get("id"), int)
        ]
    elif (folder / "vocab.json").is_file():
        numbers += _numbers(_json(folder / "vocab.json"))
        numbers += _numbers(_json(folder / "added_tokens.json"))
    elif (folder / "vocab.txt").is_file():
        with (folder / "vocab.txt").open("rb") as file:
            numbers.append(sum(1 for _ in file) - 1)
    return max(numbers) + 1 if numbers else None


def tensors(folder: Path) -> list[str] | None:
    """Names of all tensors, by the headers of the safetensors files; None where the weights are in other files."""
    names: list[str] = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            names += tensor_shapes(path)
        except (OSError, ValueError):
            return None  # the loading of the weights says what is wrong
    return names or None


def _numbers(words: object) -> list[int]:
    if isinstance(words, dict):
        return [number for number in words.values() if isinstance(number, int)]
    return [len(words) - 1] if isinstance(words, list) and words else []  # unigram: pairs in order


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
