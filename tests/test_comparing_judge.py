"""A model as the judge: the loaded engine, or a server asked through the real OpenAI client."""

import asyncio
import json
import logging
import threading
from dataclasses import replace

import pytest
from waiting import until
from werkzeug import Response

from core.comparing.cell import Cell, Place
from core.comparing.cells import CellStore
from core.comparing.judge import KEY_VARIABLE, Judge, NoVerdict, messages_for, read_reply, verdict
from core.comparing.judging import Judging
from core.comparing.spec import PromptItem, read_spec
from core.errors import ParameterError, WorkbenchError

KEY = "sk-very-secret-0123456789"
ITEM = PromptItem(messages="What is 2+2?", reference="4")


@pytest.fixture
def cells(store):
    return CellStore(store)


@pytest.fixture
def judging(runtime, cells):
    judging = Judging(runtime, cells)
    yield judging
    judging.close()


@pytest.fixture
def comparison_id(cells):
    """Three prompts under two sets; the second set's answers are the longer ones."""
    prompts = [{"messages": f"Question {n}"} for n in range(3)]
    comparison_id = cells.add(read_spec({"prompts": prompts, "sets": [{"name": "one"}, {"name": "two"}]}))
    texts = {
        Place(n, place, 0): Cell(f"Answer {n}" + "!" * place, "complete")
        for n in range(3)
        for place in (0, 1)
    }
    cells.save(comparison_id, texts)
    return comparison_id


def remote(server, **values):
    return Judge(kind="remote", base_url=server.url_for("/v1"), model="wise", **values)


def ended(judging, comparison_id):
    return until(lambda: (now := judging.progress(comparison_id)).state != "judging" and now)


def reply(content):
    return {
        "id": "x", "object": "chat.completion", "created": 1, "model": "wise",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
        ],
    }  # fmt: skip


def prefers_longer(request):
    """Answers as a judge would that likes exclamation marks; where it stands doesn't matter to it."""
    chat = request.json["messages"][-1]["content"]
    first, second = (chat.split(f"[Answer {n}]\n")[1].split("\n[End")[0] for n in (1, 2))
    better = "1" if len(first) > len(second) else "2"
    return Response(json.dumps(reply(json.dumps({"reason": "It shouts.", "better": better}))), 200,
                    content_type="application/json")  # fmt: skip


def test_the_loaded_engine_judges_in_both_orders(judging, cells, comparison_id):
    judging.start(comparison_id, Judge())
    progress = ended(judging, comparison_id)
    assert (progress.state, progress.done, progress.total, progress.failed) == ("complete", 3, 3, 0)
    votes = cells.votes(comparison_id)
    assert {vote.voter for vote in votes} == {"judge:scripted"} == {progress.voter}
    for vote in votes:
        told = vote.details["verdicts"]
        assert len(told) == len(vote.details["reasons"]) == 2
        assert vote.winner == (told[0] if told[0] == told[1] else "tie")


def test_a_remote_judge_is_asked_through_its_api(judging, cells, comparison_id, httpserver):
    httpserver.expect_request(
        "/v1/chat/completions", method="POST", headers={"Authorization": f"Bearer {KEY}"}
    ).respond_with_handler(prefers_longer)
    judging.start(comparison_id, remote(httpserver, api_key=KEY))
    assert ended(judging, comparison_id).state == "complete"
    votes = cells.votes(comparison_id)
    assert [(vote.voter, vote.set_a, vote.winner) for vote in votes] == [("judge:wise", 0, "b")] * 3
    assert votes[0].details["reasons"] == ["It shouts."] * 2
    assert len(httpserver.log) == 6
    body = httpserver.log[0][0].json
    assert body["temperature"] == 0 and body["response_format"]["type"] == "json_schema"
    # asked again it has judged all; by another rubric it judges anew, in place of its votes
    judging.start(comparison_id, remote(httpserver, api_key=KEY))
    assert ended(judging, comparison_id).done == 3 and len(httpserver.log) == 6
    judging.start(comparison_id, remote(httpserver, api_key=KEY, rubric="The shorter.", swap=False))
    ended(judging, comparison_id)
    assert len(httpserver.log) == 9 and len(cells.votes(comparison_id)) == 3


def test_a_server_without_schemas_is_asked_plainly(judging, cells, comparison_id, httpserver):
    def handler(request):
        if "response_format" in request.json:
            return Response('{"error": {"message": "unknown field"}}', 400, content_type="application/json")
        return Response(
            json.dumps(reply("The first is wrong. Better: 2")), 200, content_type="application/json"
        )

    httpserver.expect_request("/v1/chat/completions").respond_with_handler(handler)
    judging.start(comparison_id, remote(httpserver, swap=False))
    assert ended(judging, comparison_id).state == "complete"
    assert [vote.winner for vote in cells.votes(comparison_id)] == ["b"] * 3


def test_the_key_comes_from_the_environment_and_is_shown_nowhere(
    judging, cells, comparison_id, httpserver, monkeypatch, caplog, store
):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    error = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}})
    httpserver.expect_request(
        "/v1/chat/completions", headers={"Authorization": f"Bearer {KEY}"}
    ).respond_with_data(error, 401, content_type="application/json")
    judge = remote(httpserver)
    judging.start(comparison_id, judge)
    progress = ended(judging, comparison_id)
    assert progress.state == "failed" and "does not accept the key" in progress.error
    assert KEY_VARIABLE in progress.error and cells.votes(comparison_id) == []
    httpserver.clear()
    httpserver.expect_request("/v1/chat/completions").respond_with_data(
        error, 403, content_type="application/json"
    )
    judging.start(comparison_id, replace(judge, api_key=KEY))
    progress = ended(judging, comparison_id)
    assert progress.state == "failed" and "(key)" in progress.error
    assert KEY not in progress.error + repr(replace(judge, api_key=KEY)) + caplog.text


def test_a_server_that_is_not_there_ends_it_with_one_clear_line(judging, comparison_id):
    judging.start(comparison_id, Judge(kind="remote", base_url="http://127.0.0.1:9/v1", model="wise"))
    progress = ended(judging, comparison_id)
    assert progress.state == "failed" and "can't be reached" in progress.error


def test_a_pair_without_a_verdict_fails_alone(judging, cells, comparison_id, httpserver):
    def handler(request):
        content = "No idea." if "Question 1" in request.data.decode() else '{"reason": "r", "better": "tie"}'
        return Response(json.dumps(reply(content)), 200, content_type="application/json")

    httpserver.expect_request("/v1/chat/completions").respond_with_handler(handler)
    judging.start(comparison_id, remote(httpserver))
    progress = ended(judging, comparison_id)
    assert (progress.state, progress.done, progress.failed) == ("complete", 3, 1)
    assert "No idea" in progress.error
    assert [(vote.prompt, vote.winner) for vote in cells.votes(comparison_id)] == [(0, "tie"), (2, "tie")]


def test_a_judge_can_be_stopped_and_only_one_is_at_work(judging, cells, comparison_id, httpserver):
    asked, go_on = threading.Event(), threading.Event()

    def handler(request):
        asked.set()
        go_on.wait(20)
        return prefers_longer(request)

    httpserver.expect_request("/v1/chat/completions").respond_with_handler(handler)
    judging.start(comparison_id, remote(httpserver))
    asked.wait(20)
    with pytest.raises(WorkbenchError, match="at work"):
        judging.start(comparison_id, Judge())
    judging.stop(comparison_id)
    assert ended(judging, comparison_id).state == "stopped"
    go_on.set()
    assert cells.votes(comparison_id) == []


def test_nothing_to_judge_is_said(judging, cells):
    comparison_id = cells.add(read_spec({"prompts": [{"messages": "Q"}], "sets": [{"name": "one"}]}))
    for wanted in (comparison_id, "nothing"):
        with pytest.raises(WorkbenchError):
            judging.start(wanted, Judge())
    assert judging.progress(comparison_id) is None


@pytest.mark.parametrize(
    "values",
    [
        {"rubric": " "},
        {"kind": "remote", "base_url": "ftp://x", "model": "m"},
        {"kind": "remote", "base_url": "http://x/v1", "model": " "},
    ],
)
def test_a_judge_that_can_not_be_is_refused(values):
    with pytest.raises(ParameterError):
        Judge(**values)


# -- one pair ---------------------------------------------------------------------------


def judged(replies, **values):
    asked, left = [], list(replies)

    async def ask(messages):
        asked.append(messages)
        return left.pop(0)

    return asyncio.run(verdict(ask, Judge(**values), ITEM, "It is 4.", "It is 5.")), asked


def says(better):
    return json.dumps({"reason": "r", "better": better})


@pytest.mark.parametrize(
    ("replies", "winner"),
    [
        (("1", "2"), "a"),
        (("2", "1"), "b"),
        (("1", "1"), "tie"),
        (("tie", "2"), "tie"),
        (("tie", "tie"), "tie"),
    ],
)
def test_only_what_both_orders_say_counts(replies, winner):
    (found, _details), asked = judged([says(one) for one in replies])
    assert found == winner
    first, second = (messages[-1].content for messages in asked)
    assert first.index("It is 4.") < first.index("It is 5.") and second.index("It is 5.") < second.index(
        "It is 4."
    )


def test_without_swap_one_order_is_asked():
    (found, details), asked = judged([says("2")], swap=False)
    assert (found, details["verdicts"], len(asked)) == ("b", ["b"], 1)


def test_the_judge_sees_question_reference_and_rubric():
    system, user = messages_for("Be strict {about} it.", ITEM, "one", "two")
    assert "Be strict {about} it." in system.content
    assert "What is 2+2?" in user.content and "[Reference answer]\n4" in user.content


@pytest.mark.parametrize(
    ("text", "better"),
    [
        ('{"reason": "r", "better": "1"}', "1"),
        ('<think>better: 2</think>```json\n{"better": "TIE"}\n```', "tie"),
        ("Both try. **Better**: answer 2", "2"),
        ('{"better": 1}', "1"),
    ],
)
def test_a_verdict_is_read_out_of_other_words(text, better):
    assert read_reply(text)[0] == better


@pytest.mark.parametrize("text", ["", "Hard to say.", '{"better": "3"}', "1"])
def test_no_verdict_is_made_up(text):
    with pytest.raises(NoVerdict):
        read_reply(text)
