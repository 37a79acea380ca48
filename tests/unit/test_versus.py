"""Methods against plain LoRA: differences by hand, bold by the sign, intervals only where every seed is there."""

from __future__ import annotations

from typing import Any

import pytest
from report_records import diverged, record

from adalora_bench.report.cells import cell_summary
from adalora_bench.report.tables import build_tables
from adalora_bench.report.versus import against_lora, at_equal_budget


def seeds(method: str, task: str, values: list[float], *overrides: str) -> list[dict[str, Any]]:
    """Accuracies (or Matthews correlations) of seeds 0, 1, ..."""
    found = []
    for seed, value in enumerate(values):
        one = record(method, task, seed, *overrides)
        one["final"]["scores"] = dict.fromkeys(one["final"]["scores"], value)
        found.append(one)
    return found


LORA = [0.80, 0.81, 0.82, 0.83, 0.84]
BETTER = [0.81, 0.83, 0.83, 0.86, 0.85]


def table(records: list[dict[str, Any]]) -> tuple[dict[str, list[str]], str]:
    parts, notes = against_lora(cell_summary(records))
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in parts[1].splitlines()]
    return {line[0]: line[1:] for line in lines}, " ".join(notes)


def test_differences_are_paired_and_bold_where_five_seeds_agree() -> None:
    found, notes = table(
        seeds("lora", "rte", LORA) + seeds("sora", "rte", BETTER) + seeds("bitfit", "rte", LORA)
    )
    assert found["method"] == ["rte: acc"]
    assert found["sora"] == ["**+1.00** [+1.00, +3.00] n=5"]
    assert found["bitfit"] == ["+0.00 [+0.00, +0.00] n=5"]
    assert "smallest p 0.0625, 0.12 after Holm" in notes


def test_other_training_rows_are_no_comparison() -> None:
    more = seeds("sora", "rte", BETTER)
    for one in more:
        one["rows"] = {"train": 5000, "report": 277}
    lora = seeds("lora", "rte", LORA)
    for one in lora:
        one["rows"] = {"train": 2490, "report": 277}
    assert against_lora(cell_summary([*lora, *more])) == ([], [])
    found, _ = table([*lora, *more, *seeds("sora", "mrpc", BETTER), *seeds("lora", "mrpc", LORA)])
    assert found["method"] == ["mrpc: acc"]


def test_what_has_no_difference_has_no_place() -> None:
    records = seeds("lora", "rte", LORA) + seeds("lora", "mrpc", LORA) + seeds("sora", "rte", BETTER)
    found, _ = table(records + seeds("bitfit", "sst2", LORA))
    assert found["method"] == ["rte: acc"]
    assert "bitfit" not in found


def test_tasks_of_few_methods_are_left_out_of_the_sums() -> None:
    methods = ("lora", "sora", "bitfit", "increlora", "elora")
    records = [one for task in ("rte", "mrpc") for name in methods for one in seeds(name, task, LORA)]
    records += seeds("lora", "cola", LORA) + seeds("sora", "cola", BETTER)
    found, _ = table(records)
    assert found["method"][3:] == ["interquartile mean of mrpc, rte", "P(better than lora)"]
    assert "-" not in found["bitfit"][3:]


def test_across_tasks_only_where_they_have_the_same_seeds() -> None:
    lora = [one for task in ("rte", "mrpc") for name in ("lora", "bitfit") for one in seeds(name, task, LORA)]
    sora = [one for task in ("rte", "mrpc") for one in seeds("sora", task, [*BETTER, 0.9])]
    kept = [one for one in sora if one["seed"] != (0 if one["names"]["task"] == "rte" else 5)]
    found, _ = table([*lora, *kept])
    assert found["sora"][2:] == ["-", "-"]
    kept = [one for one in sora if one["seed"] != 0]
    found, _ = table([*lora, *kept])
    assert "-" not in found["sora"][2:]


def test_a_diverged_seed_has_no_difference_and_four_are_never_bold() -> None:
    sora = seeds("sora", "rte", BETTER)
    found, notes = table([*seeds("lora", "rte", LORA), *sora[:4], diverged(sora[4])])
    assert found["sora"] == ["+1.50 [+1.00, +3.00] n=4"]
    assert "Exact" not in notes


def test_across_tasks_only_with_every_seed_of_every_task() -> None:
    both = [one for task in ("rte", "mrpc") for one in seeds("lora", task, LORA)]
    sora = [one for task in ("rte", "mrpc") for one in seeds("sora", task, [0.9] * 5)]
    found, notes = table([*both, *sora])
    assert found["sora"][2:] == ["90.00 [90.00, 90.00]", "1.00 [1.00, 1.00]"]
    mean, low, high = (float(text.strip("[],")) for text in found["lora"][2].split())
    assert mean == pytest.approx(82.0)
    assert low < mean < high
    assert found["lora"][3] == "-"
    assert "82 to 90 %" in notes
    bitfit = [one for task in ("rte", "mrpc") for one in seeds("bitfit", task, LORA)]
    missing, _ = table([*both, *bitfit, *sora[:-1]])
    assert missing["sora"][2:] == ["-", "-"]
    assert "-" not in missing["bitfit"][2:]


def test_nothing_to_compare() -> None:
    assert against_lora(cell_summary(seeds("lora", "rte", LORA))) == ([], [])
    assert against_lora(cell_summary(seeds("sora", "rte", LORA))) == ([], [])
    (text,) = build_tables(seeds("sora", "rte", LORA)).values()
    assert "Against" not in text


def budgeted(
    method: str, final: int, values: list[float] = BETTER, override: str | None = None
) -> list[dict[str, Any]]:
    """Seeds of a row with so many parameters at the end, and an override that makes it one of its own."""
    records = seeds(method, "rte", values, *([override] if override else []))
    for one in records:
        one["params"] |= {"adapter_initial": 2 * final, "adapter_final": final}
    return records


def equal(records: list[dict[str, Any]]) -> dict[str, list[str]]:
    parts, _ = at_equal_budget(cell_summary(records))
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in parts[1].splitlines()]
    return {line[0]: line[1:] for line in lines}


def test_at_an_equal_budget_each_row_meets_the_nearest_lora() -> None:
    wide = budgeted("lora", 8000, LORA)
    narrow = budgeted("lora", 2000, BETTER, "rank=2")
    other = budgeted("lora", 2100, [0.0] * 5, "alpha=99")  # not a setting of the budget
    small, large = budgeted("increlora", 2100), budgeted("sora", 7000)
    tiny, between = budgeted("elora", 100), budgeted("bitfit", 4000)
    found = equal([*wide, *narrow, *other, *small, *large, *tiny, *between])
    assert found["increlora"] == ["+0.00 [+0.00, +0.00] n=5, lora (rank=2), 2,100 : 2,000"]
    assert found["sora"] == ["**+1.00** [+1.00, +3.00] n=5, lora, 7,000 : 8,000"]
    assert set(found) == {"method", "increlora", "sora"} | {key for key in found if set(key) <= {"-", ":"}}


def test_at_an_equal_budget_the_best_lora_is_met() -> None:
    slow = budgeted("lora", 2000, LORA, "rank=2")
    fast = [*budgeted("lora", 2000, BETTER), *budgeted("lora", 9000, LORA, "lr=0.1")]
    found = equal([*slow, *fast, *budgeted("sora", 2100)])
    assert found["sora"] == ["+0.00 [+0.00, +0.00] n=5, lora, 2,100 : 2,000"]
    worse = [*budgeted("lora", 2000, LORA), *budgeted("lora", 2000, BETTER, "lr=0.1")]
    assert equal([*worse, *budgeted("sora", 2100)])["sora"][0].startswith(
        "+0.00 [+0.00, +0.00] n=5, lora (lr=0.1)"
    )


def test_at_an_equal_budget_a_lora_on_the_same_matrices_goes_before_a_nearer_one() -> None:
    """What is not near at all is met by none, whatever it adapts."""

    def on(records: list[dict[str, Any]], *targets: str) -> list[dict[str, Any]]:
        for one in records:
            one["config"] = {**one["config"], "method": {"targets": list(targets)}}
        return records

    everywhere = on(budgeted("lora", 2300, BETTER, "rank=2"), "all")
    two = on(budgeted("lora", 2050, LORA, "targets=[q,v]"), "q", "v")
    far = on(budgeted("lora", 9000, LORA), "up")
    rows = [on(budgeted("sora", 2000), "all"), on(budgeted("elora", 2000), "v", "q")]
    rows.append(on(budgeted("bitfit", 2000), "up"))
    found = equal([*everywhere, *two, *far, *(record for of in rows for record in of)])
    assert found["sora"] == ["+0.00 [+0.00, +0.00] n=5, lora (rank=2), 2,000 : 2,300"]
    for method in ("elora", "bitfit"):  # the second has no partner of its kind that is near
        assert found[method] == ["**+1.00** [+1.00, +3.00] n=5, lora (targets=[q,v]), 2,000 : 2,050"]


def test_an_equal_budget_wants_lora_at_two_budgets() -> None:
    records = [*budgeted("lora", 8000, LORA), *budgeted("sora", 8000)]
    assert at_equal_budget(cell_summary(records)) == ([], [])
