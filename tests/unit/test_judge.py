"""The judge of MT-Bench against a small server on this machine: grades, resume, retries, and a key nobody sees."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from judge_server import KEY, Server, reply, server

from adalora_bench.data.mt_bench import Conversation
from adalora_bench.errors import AssetError, UserError
from adalora_bench.judge.judge import (
    GRADES,
    OWN_PROMPTS,
    Judge,
    grade_of,
    judge_answers,
    signature,
    stored_verdict,
)

__all__ = ["server"]  # a fixture

TALKS = [
    Conversation(81, "writing", ("Write {question}.", "Shorter."), ("Here {answer} it is.", "Here.")),
    Conversation(111, "math", ("2+2?", "Twice?"), ("5", "10"), ("4", "8")),
]


@pytest.fixture
def judge(server: Server, monkeypatch: pytest.MonkeyPatch) -> Judge:
    monkeypatch.setenv("SOME_KEY", f"{KEY}\n")
    return Judge(url=server.url, model="examiner", key_env="SOME_KEY")


def test_every_answer_is_graded_and_the_score_is_the_mean(
    server: Server, judge: Judge, tmp_path: Path
) -> None:
    assert str(stored_verdict(TALKS, judge, tmp_path)) == "not judged"
    server.script = [(200, {}, reply(f"Well done.\nRating: [[{grade}]]")) for grade in (9, 6.5, 2, 1)]
    verdict = judge_answers(TALKS, judge, tmp_path)
    assert (verdict.score, verdict.judged, verdict.unreadable, verdict.total) == (4.625, 4, 0, 4)
    assert str(verdict) == "4.62 of 10"
    assert stored_verdict(TALKS, judge, tmp_path) == verdict
    assert set(server.paths) == {"/v1/chat/completions"}
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert {(body["model"], body["temperature"]) for body in server.asked} == {("examiner", 0)}
    first, second, math, _ = (body["messages"][1]["content"] for body in server.asked)
    assert "Write {question}." in first
    assert "Here {answer} it is." in first
    assert "Shorter." not in first
    assert "Shorter." in second
    assert "Reference" not in first + second
    assert "# Reference answer\n4\n" in math
    rows = [json.loads(line) for line in (tmp_path / GRADES).read_text().splitlines()]
    assert [(row["id"], row["turn"], row["grade"]) for row in rows] == [
        (81, 1, 9.0),
        (81, 2, 6.5),
        (111, 1, 2.0),
        (111, 2, 1.0),
    ]


def test_a_second_call_asks_only_for_what_is_missing(server: Server, judge: Judge, tmp_path: Path) -> None:
    server.script = [(200, {}, reply("[[8]]")), (200, {}, reply("[[6]]")), (400, {}, "no")]
    with pytest.raises(UserError, match=r"refuses \(HTTP 400: no\)"):
        judge_answers(TALKS, judge, tmp_path)
    part = stored_verdict(TALKS, judge, tmp_path)
    assert part.score is None
    assert str(part) == "not judged (2 of 4 answers are)"
    with pytest.raises(UserError, match="2 answers are not judged yet, and this is an offline run"):
        judge_answers(TALKS, judge, tmp_path, offline=True)
    with (tmp_path / GRADES).open("a") as file:
        file.write('{"digest": "cut sho')  # a kill in the middle of a line
    assert judge_answers(TALKS, judge, tmp_path).score == 7.0  # (8 + 6 + 7 + 7) / 4
    assert len(server.asked) == 5
    assert judge_answers(TALKS, judge, tmp_path, offline=True).score == 7.0
    assert len(server.asked) == 5
    # Another answer, or another model, is another question.
    changed = [TALKS[0], replace(TALKS[1], answers=("5", "8"))]
    assert stored_verdict(changed, judge, tmp_path).judged == 3
    assert stored_verdict(TALKS, replace(judge, model="other"), tmp_path).judged == 0


def test_a_busy_endpoint_is_asked_again_after_longer_and_longer_waits(
    server: Server, judge: Judge, tmp_path: Path
) -> None:
    waits: list[float] = []
    server.script = [
        (429, {"Retry-After": "11"}, "slow down"),
        (503, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, ""),
        (200, {}, "<html>not json</html>"),
        (200, {}, '{"choices": []}'),
        (200, {}, reply("[[10]]")),
    ]
    assert judge_answers(TALKS[:1], judge, tmp_path, sleep=waits.append).score == 8.5
    assert waits[0] == 11
    assert [2 <= waits[1] <= 2.5, 4 <= waits[2] <= 5, 8 <= waits[3] <= 10] == [True] * 3
    assert len(waits) == 4


def test_an_endpoint_that_stays_silent_is_named_and_nothing_is_lost(
    server: Server, judge: Judge, tmp_path: Path
) -> None:
    waits: list[float] = []
    server.script = [(200, {}, reply("[[8]]")), *[(500, {}, "broken")] * 6]
    with pytest.raises(
        AssetError, match=r"127\.0\.0\.1 gave no answer in 6 tries \(HTTP 500: broken\); 1 of 2"
    ):
        judge_answers(TALKS[:1], judge, tmp_path, sleep=waits.append)
    assert len(waits) == 5  # none after the last try
    assert stored_verdict(TALKS[:1], judge, tmp_path).judged == 1
    closed = replace(judge, url="http://127.0.0.1:9", attempts=2)
    with pytest.raises(AssetError, match="gave no answer in 2 tries"):
        judge_answers(TALKS[:1], closed, tmp_path / "other", sleep=waits.append)


def test_the_key_is_in_no_message_no_log_and_no_file(
    server: Server, judge: Judge, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    said = f"Incorrect key: {KEY}"
    server.script = [(429, {}, said), (401, {}, said)]
    with pytest.raises(UserError, match=r"HTTP 401: Incorrect key: \*\*\*") as caught:
        judge_answers(TALKS, judge, tmp_path, sleep=lambda _: None)
    judge_answers(TALKS, judge, tmp_path)
    text = caplog.text + str(caught.value) + (tmp_path / GRADES).read_text() + repr(judge) + signature(judge)
    assert KEY not in text
    assert "HTTP 429" in caplog.text
    # A redirect would carry the header to another place.
    server.script = [(302, {"Location": f"{server.url}/elsewhere"}, "")]
    with pytest.raises(UserError, match="HTTP 302"):
        judge_answers(TALKS, judge, tmp_path / "other")
    assert set(server.paths) == {"/v1/chat/completions"}


def test_without_a_key_nothing_is_asked(
    server: Server, judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value, sentence in (("", "SOME_KEY .* is not set"), ("two words", "holds a blank")):
        monkeypatch.setenv("SOME_KEY", value)
        with pytest.raises(UserError, match=sentence) as caught:
            judge_answers(TALKS, judge, tmp_path)
        assert "two words" not in str(caught.value)
    assert server.asked == []
    judge_answers(TALKS[:1], replace(judge, key_env=None), tmp_path)
    assert all("Authorization" not in headers for headers in server.headers)


def test_a_reply_without_a_grade_is_counted_and_left_out(
    server: Server, judge: Judge, tmp_path: Path
) -> None:
    server.script = [(200, {}, reply("I cannot say.")), (200, {}, reply("[[4]]"))]
    verdict = judge_answers(TALKS[:1], judge, tmp_path)
    assert (verdict.score, verdict.unreadable) == (4.0, 1)
    assert str(verdict) == "4.00 of 10, 1 replies without a grade"
    server.script = [(200, {}, '{"choices": [{"message": {"content": null}}]}')] * 2
    assert judge_answers(TALKS[:1], judge, tmp_path / "other").score is None


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("Rating: [[5]]", 5.0),
        ("[3] and then [[8.5]]", 8.5),
        ("Rating: [6]", 6.0),
        ("[[11]]", None),
        ("[[0]]", None),
        ("five", None),
    ],
)
def test_the_grade_in_a_reply(text: str, grade: float | None) -> None:
    assert grade_of(text) == grade


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"url": "ftp://example.org"}, "judge.url must be an http or https address"),
        ({"url": "file:///etc/passwd"}, "judge.url must be"),
        ({"url": "http://[::1"}, "judge.url must be"),
        ({"model": ""}, "judge.model='' must name a model"),
        ({"attempts": 0}, "judge.attempts=0"),
        ({"timeout": 0.0}, r"judge.timeout=0\.0"),
    ],
)
def test_wrong_settings_are_one_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        replace(Judge(url="https://user:word@example.org/v1", model="m"), **change)


def test_the_prompts_of_mt_bench_are_read_where_its_folder_is_given(
    server: Server, judge: Judge, tmp_path: Path
) -> None:
    folder = tmp_path / "mt_bench"
    folder.mkdir()
    with pytest.raises(UserError, match=r"judge_prompts\.jsonl cannot be read"):
        stored_verdict(TALKS, replace(judge, folder=str(folder)), tmp_path)
    prompts = [
        {"name": name, "system_prompt": f"s {name}", "prompt_template": text}
        for name, text in {
            "single-v1": "{question} {answer}",
            "single-math-v1": "{question} {ref_answer_1} {answer}",
            "single-v1-multi-turn": "{question_1} {answer_1} {question_2} {answer_2}",
            "single-math-v1-multi-turn": "{ref_answer_1} {ref_answer_2} {answer_2}",
        }.items()
    ]
    (folder / "judge_prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    references = {"question_id": 111, "choices": [{"turns": ["four", "eight"]}]}
    (folder / "reference_answer_gpt-4.jsonl").write_text(json.dumps(references))
    theirs = replace(judge, folder=str(folder))
    judge_answers(TALKS, theirs, tmp_path)
    assert [body["messages"][1]["content"] for body in server.asked] == [
        "Write {question}. Here {answer} it is.",
        "Write {question}. Here {answer} it is. Shorter. Here.",
        "2+2? four 5",
        "four eight 10",
    ]
    assert server.asked[2]["messages"][0] == {"role": "system", "content": "s single-math-v1"}
    assert "MT-Bench's files sha256:" in signature(theirs)
    assert "our wording" in signature(judge)
    prompts[0]["prompt_template"] = "{questoin}"
    (folder / "judge_prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    with pytest.raises(UserError, match=r"'single-v1' has a blank \{questoin\}"):
        stored_verdict(TALKS, theirs, tmp_path)
    (folder / "judge_prompts.jsonl").write_text(json.dumps(prompts[0]))
    with pytest.raises(UserError, match="no usable prompt 'single-math-v1'"):
        stored_verdict(TALKS, theirs, tmp_path)


def test_a_reference_for_one_turn_is_shown_in_that_turn_only(
    server: Server, judge: Judge, tmp_path: Path
) -> None:
    judge_answers([replace(TALKS[1], references=("4", " "))], judge, tmp_path)
    first, second = (body["messages"][1]["content"] for body in server.asked)
    assert "# Reference answer\n4\n" in first
    assert "Reference" not in second


def test_our_prompts_ask_for_the_form_that_is_read() -> None:
    for system, text in OWN_PROMPTS.values():
        assert system
        assert grade_of(text) == 5.0
