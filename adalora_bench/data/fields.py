"""A task as its settings say it: typed, without behaviour. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from adalora_bench.data.sources import Source
from adalora_bench.errors import UserError

Row = dict[str, Any]

CHOICES = "choices"
REFERENCES = "references"


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How a generative backbone answers.

    Attributes:
        max_new_tokens: at most so many tokens; an answer also ends at the end-of-sequence token.
        beams: width of the beam search; 1 takes the likeliest token.
        length_penalty: a beam's log-likelihood is divided by its length to this power; no effect without beams.
        no_repeat_ngram: no n tokens may come twice in an answer; 0 allows it.
        stop: an answer ends before the first of these strings.
    """

    max_new_tokens: int = 64
    beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram: int = 0
    stop: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "beams"):
            if getattr(self, name) < 1:
                raise UserError(f"task.generation.{name}={getattr(self, name)} must be at least 1.")
        if self.no_repeat_ngram < 0:
            raise UserError(f"task.generation.no_repeat_ngram={self.no_repeat_ngram} must not be negative.")
        if "" in self.stop:
            raise UserError("task.generation.stop holds an empty string, which would end every answer.")


@dataclass(frozen=True, kw_only=True)
class Span:
    """How an encoder looks for a span.

    Attributes:
        stride: tokens that two neighbouring windows of a long context share.
        max_answer: longest span that may be predicted, in tokens.
    """

    stride: int = 128
    max_answer: int = 30

    def __post_init__(self) -> None:
        if self.stride < 0:
            raise UserError(f"task.span.stride={self.stride} must not be negative.")
        if self.max_answer < 1:
            raise UserError(f"task.span.max_answer={self.max_answer} must be at least 1.")


# fmt: off
TEXT_SETTINGS = (
    "prompt", "answer", "answer_words", "answer_by", "label_smoothing", "loss_on_prompt", "cut", "max_answer",
    "generation",
)
# fmt: on
"""What only generative backbones read; not part of the key of an encoder's cell."""


@dataclass(frozen=True, kw_only=True)
class TaskFields:
    """What a benchmark task is; `Task` adds what it does. Values live in conf/task/*.yaml.

    Attributes:
        version: raised when the same files give other rows or scores.
        kind: "classification" (a label numbers one of `labels`), "regression" (it is a float), "choice" (it numbers one
            of the row's `choices`), "span" (it holds texts of the context and their starts) or "text" (it is the
            answer). On a generative backbone every task becomes text, through its prompt.
        report_splits: suffix of the metric names -> split; the suffix is "" where there is one report set.
        report_unions: suffix -> suffixes of report_splits whose rows are also scored together.
        optional_splits: report splits that a local folder may lack.
        text: one column, or two for a pair; of a span the question and the context; of a text all of the prompt's.
        group: a column whose values must not be shared by train and holdout rows.
        score_group: a column that metrics over groups of rows are given.
        main_metric: a score name, with its suffix: "acc", "acc_matched".
        max_length: tokens of an input (of a prompt, of a window), unless a recipe says otherwise.
        backbone_for: scale -> backbone taken where the user names none.
        official_rows: split -> rows of the published data set; what has fewer is a subset and says so.
        official_labels: split -> rows of each label in the published data set; rows with other counts are other data.
        known_subsets: "validation 1000" -> what else is to be said of a split with so many rows.
        span: windows and spans of an encoder.
        prompt, answer, answer_words: what a generative backbone reads and writes, see data/prompts.py; the words by
            label, for choices by "0", "1" and so on.
        answer_by: "generation" or "likelihood": how a generative backbone decides among given answers.
        label_smoothing: share of the target that is spread over the whole vocabulary while a text is learnt.
        loss_on_prompt: a decoder also learns to predict the prompt.
        cut: the column that loses its end where a prompt is too long; null cuts the prompt's beginning.
        max_answer: tokens of a training answer; null does not cut it.
        generation: how a generative backbone answers.
    """

    version: int
    description: str
    kind: str
    source: Source
    train_split: str = "train"
    report_splits: dict[str, str]
    report_unions: dict[str, list[str]] = field(default_factory=dict)
    optional_splits: list[str] = field(default_factory=list)
    text: list[str]
    label: str
    labels: list[str]
    group: str | None = None
    score_group: str | None = None
    metrics: list[str]
    main_metric: str
    max_length: int
    backbone_for: dict[str, str]
    official_rows: dict[str, int]
    known_subsets: dict[str, str] = field(default_factory=dict)
    official_labels: dict[str, list[int]] = field(default_factory=dict)
    span: Span = field(default_factory=Span)
    prompt: str | None = None
    answer: str = "{answer}"
    answer_words: dict[str, str] = field(default_factory=dict)
    answer_by: str = "generation"
    label_smoothing: float = 0.0
    loss_on_prompt: bool = False
    cut: str | None = None
    max_answer: int | None = None
    generation: Generation = field(default_factory=Generation)

    def score_names(self, variant: str = "") -> list[str]:
        """All score names, main metric first: `acc`, or `acc_matched`, `acc_mismatched`.

        Args:
            variant: "gen" or "lik" where a generative backbone classifies: `acc_gen_matched`.
        """
        pairs = [(name, suffix) for suffix in self._suffixes() for name in self.metrics]
        pairs.sort(key=lambda pair: score_name(*pair) != self.main_metric)
        return [score_name(name, suffix, variant) for name, suffix in pairs]

    def certain_scores(self) -> list[str]:
        """Score names that do not depend on an optional split."""
        certain = {name for name, split in self.report_splits.items() if split not in self.optional_splits}
        certain |= {union for union, parts in self.report_unions.items() if certain.issuperset(parts)}
        suffixes = [suffix for suffix in self._suffixes() if suffix in certain]
        return [score_name(name, suffix) for suffix in suffixes for name in self.metrics]

    def _suffixes(self) -> list[str]:
        return [*self.report_splits, *self.report_unions]


def score_name(metric: str, suffix: str, variant: str = "") -> str:
    """`acc`, `acc_matched`, or `acc_gen_matched`."""
    return "_".join(part for part in (metric, variant, suffix) if part)
