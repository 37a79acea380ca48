"""How a task is put before a backbone: from rows to tensors, from tensors to losses and predictions.

An encoder answers through a head, by the task's kind; a decoder or a sequence-to-sequence model answers with text. This
module imports no torch; the forms do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adalora_bench.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adalora_bench.data.tasks import Task
    from adalora_bench.forms.base import Form
    from adalora_bench.models.backbone import Backbone

VARIANTS = {"generation": "gen", "likelihood": "lik"}
"""task.answer_by -> what the names of metrics over classes then carry."""


def kind_on(task: Task, backbone: Backbone) -> str:
    """What the backbone is asked for: the task's kind where it is an encoder, else "text"."""
    return task.kind if backbone.form == "encoder" else "text"


def variant_on(task: Task, backbone: Backbone) -> str:
    """What the metrics' names carry: "gen" or "lik" where a generative backbone decides among classes, else ""."""
    if backbone.form == "encoder" or task.kind not in ("classification", "choice"):
        return ""
    return VARIANTS[task.answer_by]


def check_fit(task: Task, backbone: Backbone) -> None:
    """UserError for a task and a backbone that do not fit, in one sentence."""
    if backbone.form == "encoder":
        if task.kind == "text":
            raise UserError(
                f"the task asks for text, but {backbone.architecture} is an encoder and writes none; "
                "use a backbone of form decoder or seq2seq."
            )
        return
    if task.kind == "regression":
        raise UserError(
            f"the task asks for a number, but {backbone.architecture} ({backbone.form}) answers with text; "
            "use an encoder."
        )
    if task.prompt is None:
        raise UserError(
            f"task.prompt is missing, and {backbone.architecture} ({backbone.form}) answers a task of kind "
            f"{task.kind} through a prompt only; use an encoder, or a task with a prompt."
        )
    if task.loss_on_prompt and backbone.form == "seq2seq":
        raise UserError(
            f"task.loss_on_prompt=true is for decoders; {backbone.architecture} reads its prompt in the encoder."
        )


def make(
    task: Task, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, *, cap: int | None = None
) -> Form:
    """The form of this task on this backbone. Imports torch.

    Args:
        cap: no input and no answer is longer, in tokens, whatever the task says (`scale.max_length`).

    Raises:
        UserError: they do not fit (`check_fit`), or prompt and answer together are longer than the tokenizer allows.
    """
    from adalora_bench.forms import choice, sequence, span, text

    check_fit(task, backbone)
    forms: dict[str, type[Form]] = {
        "classification": sequence.Classification,
        "regression": sequence.Regression,
        "choice": choice.Choice,
        "span": span.Spans,
        "text": text.Seq2Seq if backbone.form == "seq2seq" else text.Decoder,
    }
    return forms[kind_on(task, backbone)](task, tokenizer, variant=variant_on(task, backbone), cap=cap)


def shortened(length: int, cap: int | None) -> int:
    """The length, or the cap where that is smaller."""
    return length if cap is None else min(length, cap)
