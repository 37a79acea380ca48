"""Our metrics as `evaluate.Metric` objects, for code that speaks the evaluate library. Works without a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adalora_bench import metrics

if TYPE_CHECKING:
    import evaluate


def as_evaluate(name: str) -> evaluate.Metric:
    """The metric `name` as an evaluate.Metric that keeps its rows in memory; `compute` gives {name: value}.

    Predictions and references are what `metrics.score` takes; for a grouped metric a reference is a dict
    {"group": string, "label": int}, since a column of evaluate has one type. Instances go into
    `evaluate.combine([as_evaluate("acc"), as_evaluate("f1")])`. UserError: no such metric.
    """
    import datasets
    import evaluate

    kind = metrics.label_kind(name)
    entry = metrics.METRICS[name]
    value = datasets.Value(
        {"class": "int64", "grouped": "int64", "number": "float64", "text": "string"}[kind]
    )
    references: Any = value
    if kind == "text":
        references = datasets.Sequence(value)
    elif kind == "grouped":
        references = {"group": datasets.Value("string"), "label": value}

    class Skin(evaluate.Metric):
        """One of our metrics."""

        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description=f"{entry.description} ({metrics.signature(name)})",
                citation="",
                inputs_description="\npredictions and references, one per row",
                features=datasets.Features({"predictions": value, "references": references}),
            )

        def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
            if kind == "grouped":
                references = [(row["group"], row["label"]) for row in references]
            return {name: metrics.score(name, predictions, references)}

    skin = Skin(keep_in_memory=True)
    # evaluate derives a name from the class; `combine` tells equal scores apart by it.
    skin.info.module_name = name
    return skin
