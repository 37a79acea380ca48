"""Weights as the hub serves them, read offline: a tiny model saved by transformers into a hand-made hub cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from adalora_bench.data.sources import Found
from adalora_bench.errors import UserError
from adalora_bench.models.heads import byte_tokenizer, random_model
from adalora_bench.settings import prepare
from adalora_bench.settings.compose import compose_cells, conf_dir
from adalora_bench.settings.config import build


def _save_tiny(name: str, folder: Path) -> Any:
    """The tiny random model of conf/backbone/<name>.yaml with a tokenizer, saved as transformers saves it."""
    from transformers import AutoModel

    backbone = build(yaml.safe_load((conf_dir() / "backbone" / f"{name}.yaml").read_text()), "backbone")
    model = random_model(AutoModel, backbone._config(None, 2), seed=7)
    model.save_pretrained(folder)
    byte_tokenizer(backbone.architecture).save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("backbone", "tiny"), [("deberta_v3_base", "tiny_deberta_v2"), ("roberta_base", "tiny_roberta")]
)
def test_a_pinned_snapshot_in_the_hub_cache_is_found_and_loaded_offline(
    backbone: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    [cell] = compose_cells(
        [f"backbone={backbone}", "backbone.layers=2", "task=toy", "method=lora", "scale=smoke"]
    )
    source = cell.config["backbone"]["source"]
    folder = tmp_path / f"models--{source['hub'].replace('/', '--')}" / "snapshots" / source["revision"]
    saved = _save_tiny(tiny, folder)

    found = prepare.assets([cell], prepare.places_of(cell.config)).backbone(cell)
    loaded = cell.backbone.load(found, outputs=2, head_seed=0)

    assert found.served_by == "hub"
    assert source["revision"] in found.detail
    assert len(loaded.modules) == 12
    for name, weight in saved.state_dict().items():
        if "pooler" not in name:
            torch.testing.assert_close(
                getattr(loaded.model.body, loaded.model.body.base_model_prefix).state_dict()[name], weight
            )


def test_a_local_folder_beside_the_data_serves_the_weights(tmp_path: Path) -> None:
    _save_tiny("tiny_roberta", tmp_path / "FacebookAI" / "roberta-base")
    [cell] = compose_cells(
        [
            "backbone=roberta_base",
            "backbone.layers=2",
            "task=toy",
            "method=lora",
            "scale=smoke",
            f"data_dir={tmp_path}",
        ]
    )
    found = prepare.assets([cell], prepare.places_of(cell.config)).backbone(cell)
    assert found.served_by == "local"
    assert len(prepare.weights_identity(found)) == 64  # other weights in the folder give another key
    tokens = cell.backbone.tokenizer(found)("one", "two")
    assert len(tokens["input_ids"]) == 1 + 3 + 1 + 3 + 1


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    _save_tiny("tiny_roberta", tmp_path / "weights")
    backbone = build(yaml.safe_load((conf_dir() / "backbone" / "tiny_bert.yaml").read_text()), "backbone")
    with pytest.raises(UserError, match="architecture 'roberta', but backbone.architecture is 'bert'"):
        backbone.load(Found("local", tmp_path / "weights", {}, "weights"), outputs=2, head_seed=0)


def test_a_named_folder_serves_the_weights_and_leaves_no_path_in_the_record(tmp_path: Path) -> None:
    from adalora_bench.engine.outcome import _without_paths

    _save_tiny("tiny_roberta", tmp_path / "mine")
    local = f"backbone.source.local={tmp_path / 'mine'}"
    [cell] = compose_cells(
        ["backbone=roberta_base", "backbone.layers=2", local, "task=toy", "method=lora", "scale=smoke"]
    )
    found = prepare.assets([cell], prepare.places_of(cell.config)).backbone(cell)
    assert (found.served_by, found.folder) == ("local", tmp_path / "mine")
    before = prepare.weights_identity(found)
    (tmp_path / "mine" / "tokenizer_config.json").write_text("{}")
    assert prepare.weights_identity(found) != before  # another tokenizer is another model
    assert str(tmp_path) not in str(_without_paths(cell.config))


def test_fetch_takes_a_backbone_alone(capsys: pytest.CaptureFixture[str]) -> None:
    from adalora_bench import cli

    assert cli.main(["fetch", "backbone=tiny_bert", "scale=smoke"]) == 0
    assert "tiny_bert: generated" in capsys.readouterr().out
