"""The search of the CPU scale: the same trials for every method, and no choice before its leader has three seeds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from loaded_script import load

RATES = [0.1, 0.2, 0.3]


@pytest.fixture(scope="module")
def script() -> Any:
    return load("search_cpu")


def of(*scores: float | None) -> dict[int, dict[str, Any]]:
    """Seeds 0, 1, ... of a rate; None has diverged."""
    return {
        seed: {
            "status": "diverged" if value is None else "ok",
            "main_metric": "acc",
            "final": {"scores": {"acc": value}},
        }
        for seed, value in enumerate(scores)
    }


def test_every_rate_gets_a_seed_before_any_gets_more(script: Any) -> None:
    assert script.wanted({}, RATES) == (RATES, [0])
    assert script.wanted({0.2: of(0.9)}, RATES) == ([0.1, 0.3], [0])
    assert script.wanted({0.1: of(0.5), 0.2: of(0.9), 0.3: of(None)}, RATES) == ([0.2], [1, 2])


def test_a_leader_that_falls_is_overtaken_and_the_next_one_is_held_to_the_same(script: Any) -> None:
    found = {0.1: of(0.5), 0.2: of(0.9, 0.1, 0.2), 0.3: of(None)}
    assert script.middle(found[0.2]) == 0.2
    assert script.wanted(found, RATES) == ([0.1], [1, 2])
    found[0.1] = of(0.5, 0.5)
    assert script.wanted(found, RATES) == ([0.1], [2])
    found[0.1] = of(0.5, 0.1, 0.1)
    assert script.wanted(found, RATES) is None
    assert script.leader(found) == 0.2
    assert script.leader({0.3: of(0.5), 0.1: of(0.5)}) == 0.1, "the smaller one in a tie"


def test_a_collapsed_trial_does_not_win_by_the_majority_class(script: Any) -> None:
    found = {0.1: of(0.73), 0.2: of(0.71), 0.3: of(None)}
    found[0.1][0]["status"] = "collapsed"
    assert script.leader(found) == 0.2
    assert script.leader({0.1: found[0.1], 0.3: of(None)}) == 0.1
    assert [script._text(script.score(one[0])) for one in found.values()] == ["collapsed", "71.0", "diverged"]


def test_presets_take_the_rates_of_their_method(script: Any) -> None:
    assert script.rates("full_two_matrices") == script.rates("full") == [9e-06, 3e-05, 9e-05]
    assert script.rates("peft_dora") == script.rates("lora") == [0.0003, 0.001, 0.003]
    assert all(len(set(script.rates(method))) == 3 for methods in script.TASKS.values() for method in methods)


def test_recipes_of_the_search_are_what_its_page_says(script: Any) -> None:
    """Each recipe that the search wrote has the rate that the page calls chosen."""
    chosen: dict[tuple[str, str], str] = {}
    task = ""
    for line in script.PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            task = line[3:]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0] in set(script.TASKS.get(task, ())) - set(script.OTHER_ROWS):
            chosen[cells[0], task] = cells[3]
    assert chosen
    for (method, task), rate in chosen.items():
        assert f"\n  lr: {rate}\n" in script.recipe_file(method, task).read_text(encoding="utf-8")


def test_a_row_is_typed_against_a_recipe_that_sets_more_than_a_rate(script: Any) -> None:
    """The recipe of `make demo` has alpha 32; the search goes by conf/method."""
    assert script.as_typed("increlora_searched", "film_reviews", [0.003]) == [
        "method=increlora",
        f"method.alpha={script.defaults('increlora')['alpha']}",
        "method.lr=0.003",
    ]
    assert script.as_typed("lora_r2", "film_reviews", [0.1, 0.2])[1:] == [
        "method.rank=2",
        "method.lr=0.1,0.2",
    ]
    assert "method.scorer=screened" in script.as_typed("alora", "stsb", [0.1])


def test_trials_that_do_not_count_end_the_search(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "RECORDS", tmp_path)
    ran: list[list[str]] = []

    def run(text: list[str], check: bool) -> SimpleNamespace:
        ran.append(text)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(script.subprocess, "run", run)
    assert script.search("lora", "stsb", 1) == 1
    assert len(ran) == 1
    assert "do not have its settings" in capsys.readouterr().out


def test_variants_take_over_what_their_method_won_but_for_what_they_do_not_use(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "ROOT", tmp_path)
    for variant in (None, "alora_dnas", "alora_sensi"):
        script.write_recipe("alora", "stsb", 0.003, variant=variant)
        written = yaml.safe_load(script.recipe_file(variant or "alora", "stsb").read_text(encoding="utf-8"))
        wanted = {"lr": 0.003} | script.FIXED["alora"]
        if variant:
            del wanted["scorer"]
        assert written["method"] == wanted
        assert set(written["recipe"]["values"]) == {f"method.{name}" for name in wanted if name != "lr"}


def test_rows_at_another_budget_have_trials_of_their_own(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = script.defaults("lora") | {"lr": 1e-3}
    made = []
    for seed, changed in enumerate(({}, {"rank": 2}, {"targets": ["q", "v"]}, {"dropout": 0.1})):
        overrides = [
            "split=holdout",
            *(f"method.{name}={value}" for name, value in ({"lr": 1e-3} | changed).items()),
        ]
        made.append({"config": {"method": settings | changed}, "overrides": overrides, "seed": seed})
    monkeypatch.setattr(script, "records", lambda *_: made)
    seeds = {row: set(script.trials(row, "stsb").get(1e-3, {})) for row in ("lora", "lora_r2", "lora_qv")}
    assert seeds == {"lora": {0}, "lora_r2": {1}, "lora_qv": {2}}
    assert "method.targets=[q,v]" in script.command("lora_qv", "stsb", [1e-3], [0], 1)


def test_trials_under_a_default_that_has_changed_since_do_not_count(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interpolation is compared by what it comes to: IncreLoRA's interval is the training's warm-up."""
    made = []
    own = script.defaults("increlora")
    assert own["interval"] == own["growth_warmup"] == "${train.warmup}"
    settings = own | {"interval": "6%", "growth_warmup": "6%"}
    for seed, changed in enumerate(({}, {"alpha": own["alpha"] + 1}, {"interval": "7%"})):
        config = {"method": settings | changed, "train": {"warmup": "6%"}}
        made.append({"config": config, "overrides": ["method.lr=0.001"], "seed": seed})
    monkeypatch.setattr(script, "records", lambda *_: made)
    assert {rate: set(seeds) for rate, seeds in script.trials("increlora", "stsb").items()} == {
        own["lr"]: {0}
    }


def test_a_rate_of_no_row_is_asked_for_in_one_sentence(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["search_cpu.py", "--chosen"])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 2
    assert "--chosen wants one --task and one row" in capsys.readouterr().err
