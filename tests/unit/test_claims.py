"""Claims of the papers: that every file fits, and verdicts by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest
from report_records import diverged, everything, record

from adalora_bench.errors import UserError
from adalora_bench.report.claim_text import interval, line, markdown, numbers
from adalora_bench.report.claims import VERDICTS, Judged, Place, judge_all
from adalora_bench.report.measures import measure, places, third
from adalora_bench.settings.compose import conf_dir, options
from adalora_bench.settings.published import Claim, ClaimRow, Measure, PaperClaims, load_claims

FOLDER = conf_dir() / "claim"
SCORES = [0.80, 0.81, 0.82, 0.83, 0.84]


def seeds(method: str, values: list[float | None], task: str = "rte", **more: Any) -> list[dict[str, Any]]:
    found = []
    for seed, value in enumerate(values):
        one = record(method, task, seed) | more
        one["final"] = {"epoch": 2.0, "scores": {"acc": value}}
        found.append(diverged(one) if value is None else one)
    return found


def paper(*, b: tuple[str, ...] = ("LoRA",), on: tuple[str, ...] = ("RTE",), **more: Any) -> PaperClaims:
    fields = {
        "id": "c",
        "where": "Table 1",
        "says": "s",
        "a": ["ours"],
        "b": list(b),
        "on": list(on),
        "source": "S",
    }
    return PaperClaims(
        paper="P",
        backbone="deberta_v3_base",
        split="validation",
        rows=[
            ClaimRow(label="ours", method="increlora"),
            ClaimRow(label="LoRA", method="lora"),
            ClaimRow(label="BitFit", method="bitfit"),
        ],
        measures=[
            Measure(label="RTE", task="rte", metrics=["acc_gen|acc"]),
            Measure(label="MRPC", task="mrpc", metrics=["acc"]),
        ],
        claims=[Claim(**(fields | {"relation": "gt"} | more))],
    )


def judged(one: PaperClaims, records: list[dict[str, Any]]) -> Judged:
    (found,) = judge_all([one], records)
    return found


def test_units_that_trained_on_other_rows_are_not_compared() -> None:
    ours = seeds("increlora", [0.9] * 5, rows={"train": 1000})
    assert judged(paper(), ours + seeds("lora", [0.8] * 5, rows={"train": 968})).verdict == "holds"
    assert judged(paper(), ours + seeds("lora", [0.8] * 5, rows={"train": 3668})).verdict == "not run"


def shifted(by: list[float]) -> list[dict[str, Any]]:
    return seeds("lora", SCORES) + seeds("increlora", [a + b for a, b in zip(SCORES, by, strict=True)])


def at_paper(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one | {"names": one["names"] | {"scale": "paper"}} for one in records]


def test_every_file_fits_and_names_what_there_is() -> None:
    papers = load_claims(FOLDER)
    assert [one.paper for one in papers] == ["AFLoRA", "ALoRA", "Delta-LoRA", "IncreLoRA", "SoRA"]
    ids = [claim.id for one in papers for claim in one.claims]
    assert len(set(ids)) == len(ids) == 118
    methods, tasks, backbones = options("method"), options("task"), options("backbone")
    for one in papers:
        assert {row.method for row in one.rows} <= set(methods)
        assert {each.task for each in one.measures} <= set(tasks)
        assert {one.backbone, *(claim.backbone or one.backbone for claim in one.claims)} <= set(backbones)
        assert all(claim.source and claim.where and claim.says for claim in one.claims)


def test_what_is_unverified_is_no_claim() -> None:
    """The paper's full fine-tuning score on RTE contradicts its source: increlora-t1-rte-ft is left out."""
    texts = [path.read_text() for path in FOLDER.glob("*.yaml")]
    assert not any("increlora-t1-rte-ft" in text or "3.61" in text for text in texts)
    assert not any(re.search("unverified|recalled", text) for text in texts)


@pytest.mark.parametrize(
    ("by", "relation", "verdict"),
    [
        ([0.01, 0.02, 0.03, 0.01, 0.02], "gt", "holds"),
        ([-0.01, -0.02, -0.03, -0.01, -0.02], "gt", "does not hold"),
        ([-0.01, -0.02, -0.03, -0.01, -0.02], "lt", "holds"),
        ([0.01, 0.02, -0.03, 0.01, 0.02], "gt", "undecided"),
        ([0.0, 0.0, 0.0, 0.0, 0.0], "gt", "undecided"),
        ([0.0, 0.0, 0.0, 0.0, 0.0], "ge", "holds"),
        ([0.0, 0.01, 0.0, 0.0, 0.0], "le", "undecided"),
    ],
)
def test_order(by: list[float], relation: str, verdict: str) -> None:
    assert judged(paper(relation=relation), shifted(by)).verdict == verdict


def test_numbers_by_hand() -> None:
    one = judged(paper(), shifted([0.01, 0.02, 0.03, 0.01, 0.02]))
    assert one.place == Place(scale="cpu", backbone="deberta_v3_base", split="validation")
    assert interval(one.comparisons[0]) == "+2.00 [+1.00, +3.00] n=5"
    assert line(one) == "c: holds at cpu scale, deberta_v3_base (ours - LoRA, RTE: +2.00 [+1.00, +3.00] n=5)"


def test_four_seeds_decide_nothing() -> None:
    records = [one for one in shifted([0.05] * 5) if one["seed"] < 4]
    assert judged(paper(), records).verdict == "undecided"


def test_seeds_are_paired() -> None:
    """Seeds that only one side has are left out."""
    records = [
        one for one in shifted([0.05] * 5) if not (one["seed"] == 4 and one["names"]["method"] == "lora")
    ]
    assert interval(judged(paper(), records).comparisons[0]) == "+5.00 [+5.00, +5.00] n=4"


def test_a_diverged_seed_is_worst_and_counts() -> None:
    records = seeds("lora", [*SCORES]) + seeds("increlora", [0.9, 0.9, 0.9, 0.9, None])
    one = judged(paper(), records)
    assert one.verdict == "undecided"
    assert interval(one.comparisons[0]) == "+8.00 [diverged, +10.00] n=5"
    both = seeds("lora", [*SCORES[:4], None]) + seeds("increlora", [0.9, 0.9, 0.9, 0.9, None])
    assert interval(judged(paper(), both).comparisons[0]) == "+8.50 [+7.00, +10.00] n=4"


def test_each_row_and_task_counts() -> None:
    wide = paper(b=("LoRA", "BitFit"), on=("RTE", "MRPC"))
    records = shifted([0.01] * 5) + seeds("bitfit", [0.5] * 5)
    part = judged(wide, records)
    assert (part.verdict, part.missing, len(part.comparisons)) == ("not run", 2, 2)
    assert numbers(part).endswith("(the weakest of 2); 2 of 4 not run")
    refuted = records + seeds("increlora", [0.5] * 5, "mrpc") + seeds("lora", [0.6] * 5, "mrpc")
    assert judged(wide, refuted).verdict == "does not hold"
    whole = records + seeds("increlora", [0.7] * 5, "mrpc") + seeds("lora", [0.6] * 5, "mrpc")
    assert judged(wide, whole + seeds("bitfit", [0.6] * 5, "mrpc")).verdict == "holds"


def test_mean_over_tasks_needs_them_all() -> None:
    mean = paper(on=("RTE", "MRPC"), across="mean")
    records = shifted([0.03] * 5)
    assert judged(mean, records).place is None
    records += seeds("increlora", [0.60] * 5, "mrpc") + seeds("lora", [0.61] * 5, "mrpc")
    one = judged(mean, records)
    assert (one.verdict, interval(one.comparisons[0])) == ("holds", "+1.00 [+1.00, +1.00] n=5")


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(2.0, "holds"), (1.0, "holds"), (0.4, "does not hold"), (3.1, "holds"), (3.2, "does not hold")],
)
def test_a_value_at_paper_scale(value: float, verdict: str) -> None:
    """Differences are 1 to 3.06 points. A value holds within them, give or take half of its last digit (0.05)."""
    by = [0.01, 0.02, 0.0306, 0.01, 0.02]
    assert judged(paper(relation="delta", value=value), at_paper(shifted(by))).verdict == verdict


def test_a_value_elsewhere_is_not_comparable() -> None:
    claim = paper(relation="delta", value=2.0)
    records = shifted([0.02] * 5)
    assert judged(claim, records).verdict == "not comparable"
    split = [one | {"split": "holdout"} for one in at_paper(records)]
    assert judged(claim, split).verdict == "not comparable"


@pytest.mark.parametrize(
    ("relation", "value", "found"), [("ratio", 0.27, 80 / 300), ("fewer_pct", 73, 100 * 220 / 300)]
)
def test_costs_relate(relation: str, value: float, found: float) -> None:
    """increlora ends with 80,000 parameters, lora with 300,000."""
    one = judged(
        paper(relation=relation, value=value, metrics=["params_final"]), at_paper(shifted([0.0] * 5))
    )
    assert one.comparisons[0].middle == pytest.approx(found)
    assert one.verdict == "holds"


def test_a_score_alone() -> None:
    one = judged(paper(b=(), relation="eq", value=82), at_paper(shifted([0.0] * 5)))
    assert (one.verdict, interval(one.comparisons[0])) == ("holds", "82.00 [80.00, 84.00] n=5")
    assert (
        judged(paper(b=(), relation="eq", value=85), at_paper(shifted([0.0] * 5))).verdict == "does not hold"
    )


def test_two_places_are_judged_apart() -> None:
    records = shifted([0.05] * 5)
    other = [one | {"names": one["names"] | {"backbone": "minilm_l6"}} for one in shifted([-0.05] * 5)]
    found = judge_all([paper()], [*records, *[one | {"key": one["key"][::-1]} for one in other]])
    assert [(one.place.backbone, one.verdict) for one in found if one.place] == [
        ("deberta_v3_base", "holds"),
        ("minilm_l6", "does not hold"),
    ]


def test_ranks_and_freezing_by_role() -> None:
    grown = record("increlora", "rte", 0)
    by_role = {place: rank for place, rank in _ranks(grown).items() if place[1] == "q"}
    assert measure(grown, ["rank.q"]) == sum(by_role.values()) / 6
    deep = [rank for (_, _, block), rank in _ranks(grown).items() if block >= 4]
    assert measure(grown, ["rank.deep"]) == sum(deep) / len(deep)
    assert [third(block, 12) for block in (0, 3, 4, 7, 8, 11)] == [
        "shallow", "shallow", "middle", "middle", "deep", "deep",
    ]  # fmt: skip
    frozen = record("aflora", "rte", 0)
    steps = [e["step"] for e in frozen["events"] if e["module"].endswith("intermediate.dense.A")]
    assert len(steps) == 6
    assert measure(frozen, ["freeze_step.up.A"]) == sum(steps) / 6
    assert measure(frozen, ["freeze_step.q.A"]) is None


def _ranks(one: dict[str, Any]) -> dict[tuple[str, str, int], int]:
    known = places(one)
    return {known[name.removeprefix("body.")]: rank for name, rank in one["ranks"]["final"].items()}


def test_text_does_not_depend_on_the_order_of_records() -> None:
    papers = load_claims(FOLDER)
    records = everything()
    text = markdown(judge_all(papers, records))
    assert markdown(judge_all(papers, records[::-1])) == text
    assert set(re.findall("|".join(VERDICTS), text)) >= {"undecided", "not run", "not comparable"}


def test_a_file_that_does_not_fit() -> None:
    with pytest.raises(UserError, match="LoRo.*did you mean 'LoRA'|unknown row of claim c.*LoRo"):
        paper(b=("LoRo",))
    with pytest.raises(UserError, match="relation delta and value=None do not fit"):
        paper(relation="delta")
