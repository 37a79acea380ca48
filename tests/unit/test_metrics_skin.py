"""The evaluate.Metric skin. Every test here runs without a network: conftest.py fails one that opens a socket."""

import evaluate
import pytest

from adalora_bench import metrics
from adalora_bench.errors import UserError
from adalora_bench.metrics.skin import as_evaluate


def test_one_metric():
    skin = as_evaluate("acc")
    assert isinstance(skin, evaluate.Metric)
    assert (skin.name, skin.keep_in_memory) == ("acc", True)
    assert metrics.signature("acc") in skin.description
    assert skin.compute(predictions=[1, 0, 1, 1], references=[1, 0, 0, 1]) == {"acc": 0.75}
    # Rows in batches and one by one, and a second use of the same object.
    skin.add_batch(predictions=[1, 0], references=[1, 1])
    skin.add(prediction=0, reference=0)
    assert skin.compute() == {"acc": pytest.approx(2 / 3)}


def test_combined_metrics():
    both = evaluate.combine([as_evaluate("acc"), as_evaluate("f1"), as_evaluate("mcc")])
    answer = both.compute(predictions=[1, 1, 0, 1, 0, 0], references=[1, 1, 1, 0, 0, 0])
    assert answer == {
        "acc": pytest.approx(4 / 6),
        "f1": pytest.approx(4 / 6),
        "mcc": pytest.approx(3 / 9),
    }


def test_numbers_texts_and_groups():
    assert as_evaluate("pearson").compute(predictions=[1.0, 2.0, 3.0], references=[2.0, 4.0, 3.0]) == {
        "pearson": pytest.approx(0.5)
    }
    texts = evaluate.combine([as_evaluate("bleu_mteval_ci"), as_evaluate("rougeL"), as_evaluate("squad_em")])
    said, wanted = ["a b c d", "x"], [["A b c d.", "e"], ["x"]]
    assert texts.compute(predictions=said, references=wanted) == {
        name: pytest.approx(metrics.score(name, said, wanted))
        for name in ("bleu_mteval_ci", "rougeL", "squad_em")
    }
    rows = [{"group": "q", "label": 1}, {"group": "q", "label": 0}, {"group": "r", "label": 1}]
    grouped = evaluate.combine([as_evaluate("multirc_em"), as_evaluate("multirc_f1a")])
    assert grouped.compute(predictions=[1, 0, 0], references=rows) == {
        "multirc_em": 0.5,
        "multirc_f1a": pytest.approx(2 / 3),
    }


def test_what_our_metric_refuses_the_skin_refuses():
    with pytest.raises(ValueError, match="the labels hold -1"):
        as_evaluate("acc").compute(predictions=[1], references=[-1])
    with pytest.raises(UserError, match="unknown metric 'akk'"):
        as_evaluate("akk")


@pytest.mark.parametrize("name", metrics.names())
def test_every_metric_has_a_skin(name):
    assert as_evaluate(name).name == name
