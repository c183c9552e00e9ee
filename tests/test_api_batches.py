"""/v1/batches with OpenAI's own client, on the scripted engine: every line ends once, whatever happens."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest
from api_serving import serving
from apps import opened
from test_adapters import make_adapter
from waiting import until

from core.adapters.registry import Adapters
from core.api.batch_records import BatchRecords
from core.api.records import KeyLimits
from core.presets import Presets
from core.store import Store
from core.types import EngineSpec
from pages.parts import session

ROOT = Path(__file__).parents[1]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ENDED = ("completed", "failed", "cancelled", "expired")


@pytest.fixture
def fast(make_scripted_runtime):
    return make_scripted_runtime()


@pytest.fixture
def api(fast):
    with serving(fast) as (server, _client):
        yield server


@pytest.fixture
def slow(make_scripted_runtime):
    """Two answers at once, each of about a second."""
    with serving(make_scripted_runtime(scripted_tokens_per_s=40, max_num_seqs=2)) as (server, _client):
        yield server


def client_of(server, secret="none"):
    return openai.OpenAI(base_url=f"{server.status().url}/v1", api_key=secret, max_retries=0)


def line(number, url=CHAT, **body):
    asked = {"messages": [{"role": "user", "content": f"Question {number}"}]}
    if url == COMPLETIONS:
        asked = {"prompt": f"Question {number}"}
    return {"custom_id": f"q{number}", "method": "POST", "url": url, "body": {**asked, **body}}


def long_lines(count):
    return [line(number, max_tokens=40, min_tokens=40) for number in range(count)]


def begin(client, lines, endpoint=CHAT, **more):
    texts = [one if isinstance(one, str) else json.dumps(one) for one in lines]
    file = client.files.create(file=("questions.jsonl", "\n".join(texts).encode()), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more)


def reached(client, batch, *statuses):
    def now():
        found = client.batches.retrieve(batch.id)
        return found if found.status in statuses else None

    return until(now, 40)


def done(client, lines, endpoint=CHAT, **more):
    return reached(client, begin(client, lines, endpoint, **more), *ENDED)


def read(client, file_id):
    return [json.loads(text) for text in client.files.content(file_id).text.splitlines()]


def contents(client, batch):
    """{custom_id: answer} of the output file."""
    return {
        one["custom_id"]: one["response"]["body"]["choices"][0]["message"]["content"]
        for one in read(client, batch.output_file_id)
    }


def run_of(server, batch):
    """(run_id, state) of the one run that there is."""
    (record,) = server._store.runs(drafts=True)
    assert record.name == "questions.jsonl (API)"
    return record.run_id, record.state


# -- from the file to the answers ---------------------------------------------------------


def test_every_line_is_answered_or_says_why_not(api):
    client = client_of(api)
    lines = [
        line(0),
        line(1, temprature=1),
        "{not json",
        line(3, model="nobody"),
        line(0),
        line(5, url=COMPLETIONS),
        {"method": "POST", "url": CHAT, "body": {}},
        line(7, model="scripted"),
    ]
    batch = done(client, lines, metadata={"who": "me"})
    assert (batch.status, batch.model, batch.metadata) == ("completed", "scripted", {"who": "me"})
    assert (batch.request_counts.total, batch.request_counts.completed) == (8, 2)
    assert batch.request_counts.failed == 6
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    assert batch.cancelled_at is None and batch.expired_at is None
    answers = contents(client, batch)
    assert list(answers) == ["q0", "q7"]
    assert answers["q7"].endswith("Question 7")
    failures = read(client, batch.error_file_id)
    assert [one["custom_id"] for one in failures] == ["q1", None, "q3", "q0", "q5", None]
    words = ["temprature=1", "line 3 is not JSON", "no model 'nobody'", "line 5 repeats the custom_id"]
    words += ["not the batch's endpoint", "line 7 has no custom_id"]
    for failure, error, said in zip(failures, batch.errors.data, words, strict=True):
        assert failure["response"] is None
        assert failure["error"]["message"] == error.message and said in error.message
    assert [error.line for error in batch.errors.data] == [2, 3, 4, 5, 6, 7]


def test_plain_completions_are_a_batch_too(api):
    client = client_of(api)
    batch = done(client, [line(number, url=COMPLETIONS, max_tokens=3) for number in range(3)], COMPLETIONS)
    found = read(client, batch.output_file_id)
    assert [one["response"]["body"]["object"] for one in found] == ["text_completion"] * 3
    assert batch.error_file_id is None and batch.errors is None


def test_a_batch_is_a_run_like_any_other(api):
    client = client_of(api)
    batch = done(client, [line(number) for number in range(300)])
    assert batch.request_counts.completed == 300
    assert list(contents(client, batch)) == [f"q{number}" for number in range(300)]
    run_id, state = run_of(api, batch)
    assert state == "finished"
    run = api._jobs().open(run_id)
    assert (run.spec.prompt.mode, run.spec.input.name) == ("openai", "questions.jsonl (API)")
    outputs = client.files.list(purpose="batch_output").data
    assert [file.id for file in outputs] == [batch.output_file_id]


def test_the_batch_page_shows_its_run(workspace, monkeypatch):
    monkeypatch.setenv("WORKBENCH_API_PORT", "0")
    app = opened("batch")
    session.api().start()
    assert session.api().wait(20).phase == "serving"
    batch = done(client_of(session.api()), [line(0), line(1, temprature=1)])
    app.run()
    assert "questions.jsonl (API)" in " ".join(one.value.replace("\\", "") for one in app.markdown)
    next(one for one in app.button if one.label == "Open").click().run()
    assert not app.exception
    shown = next(table.value for table in app.dataframe if "answer_status" in table.value)
    assert list(shown["custom_id"]) == ["q0", "q1"]
    assert list(shown["answer_status"]) == ["ok", "error"]
    assert batch.request_counts.completed == 1


@pytest.mark.parametrize(
    ("lines", "code", "words"),
    [
        (["{", "nothing"], "invalid_request_file", "no row that can be used: line 1"),
        ([{"prompt": "a"}], "invalid_request_file", "keys custom_id, method, url, body"),
        ([line(0, url=COMPLETIONS), line(1, n="x")], "invalid_request", "endpoint"),
        ([line(0, model="a"), line(1, model="b")], "invalid_request", "no model 'a'"),
    ],
)
def test_a_file_without_one_good_line_fails_and_leaves_no_run(api, lines, code, words):
    client = client_of(api)
    batch = done(client, lines)
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
    assert batch.failed_at >= batch.created_at and batch.in_progress_at is None
    assert batch.errors.data[0].code == code and words in batch.errors.data[0].message
    until(lambda: not api._store.runs(drafts=True))
    assert list(api._settings.runs_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"input_file_id": "file-none"}, 404, "id"),
        ({"input_file_id": None}, 400, "input_file_id"),
        ({"endpoint": "/v1/embeddings"}, 400, "endpoint"),
        ({"completion_window": "soon"}, 400, "completion_window"),
        ({"completion_window": "48h"}, 400, "completion_window"),
        ({"metadata": {"a": 1}}, 400, "metadata"),
        ({"metadata": {"a" * 65: "b"}}, 400, "metadata"),
        ({"metadata": {str(number): "" for number in range(17)}}, 400, "metadata"),
        ({"metadata": "a"}, 400, "metadata"),
        ({"output_expires_after": {"seconds": 1}}, 400, "output_expires_after"),
    ],
)
def test_what_can_not_be_a_batch_is_refused_at_once(fast, change, status, param):
    with serving(fast) as (server, http):
        file = client_of(server).files.create(file=("a.jsonl", b"{}"), purpose="batch")
        asked = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h", **change}
        response = http.post("/v1/batches", json=asked)
        assert (response.status_code, response.json()["error"]["param"]) == (status, param)
        assert http.get("/v1/batches").json()["data"] == []


def test_lines_may_name_presets_and_adapters(api, tmp_path):
    Adapters(api._settings, api._store).add("red", make_adapter(tmp_path / "red", base="scripted"))
    presets = Presets(api._store)
    presets.save("short", {"max_tokens": 2, "logit_bias": {7: -1}})
    client = client_of(api)
    models = ["scripted", "red", "scripted:short", "red:short", "short", None]
    lines = [line(number, model=model, temperature=0) for number, model in enumerate(models)]
    batch = done(client, [*lines, line(9, model="short", max_tokens=1)])
    presets.delete("short")  # what it meant stands in the run
    tokens = [
        one["response"]["body"]["usage"]["completion_tokens"] for one in read(client, batch.output_file_id)
    ]
    assert tokens == [3, 4, 2, 2, 2, 3, 1]
    answers = contents(client, batch)
    assert "[red]" in answers["q1"] and "[red]" in answers["q3"] and "[red]" not in answers["q0"]
    run = api._jobs().open(run_of(api, batch)[0])
    assert run.spec.prompt.batch_lines.models["red:short"].adapter == "red"


# -- cancelled, paused, stopped ----------------------------------------------------------


def test_a_cancelled_batch_gives_what_is_done(slow):
    client = client_of(slow)
    batch = begin(client, long_lines(20))
    until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 2)
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = reached(client, batch, *ENDED)
    assert batch.status == "cancelled" and batch.cancelling_at <= batch.cancelled_at
    assert 2 <= batch.request_counts.completed < 20
    answered = contents(client, batch)
    rest = read(client, batch.error_file_id)
    assert {one["error"]["code"] for one in rest} == {"request_not_run"}
    assert sorted([*answered, *(one["custom_id"] for one in rest)]) == sorted(f"q{n}" for n in range(20))
    assert run_of(slow, batch)[1] == "stopped"
    with pytest.raises(openai.BadRequestError, match="is cancelled"):
        client.batches.cancel(batch.id)


def test_a_batch_waits_while_its_run_is_paused_and_ends_when_it_is_stopped(slow):
    client = client_of(slow)
    batch = begin(client, long_lines(30))
    reached(client, batch, "in_progress")
    run_id = until(lambda: [one.run_id for one in slow._store.runs() if one.state == "running"])[0]
    jobs = slow._jobs()
    jobs.pause(run_id)
    jobs.wait(run_id, 20)
    assert client.batches.retrieve(batch.id).status == "in_progress"
    jobs.start(run_id)
    until(lambda: slow._store.run(run_id).state == "running")
    jobs.stop(run_id)
    batch = reached(client, batch, *ENDED)
    assert batch.status == "cancelled"
    assert batch.errors.data[0].code == "run_stopped"


def make_late(server, batch):
    """As if its 24 hours were over."""
    records = BatchRecords(server._store)
    records.change(batch.id, times={**records.find(batch.id).times, "expires_at": int(time.time())})


@pytest.mark.parametrize("is_paused", [False, True])
def test_a_batch_that_takes_longer_than_its_window_expires_with_what_is_done(slow, is_paused):
    """It went on for ever, whatever window was asked for."""
    client = client_of(slow)
    batch = begin(client, long_lines(30))
    assert batch.expires_at == batch.created_at + 24 * 3600
    until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 2)
    (run,) = slow._store.runs()
    if is_paused:
        slow._jobs().pause(run.run_id)
        slow._jobs().wait(run.run_id, 20)
    make_late(slow, batch)
    batch = reached(client, batch, *ENDED)
    assert batch.status == "expired"
    assert batch.expires_at <= batch.finalizing_at <= batch.expired_at
    assert 2 <= batch.request_counts.completed < 30
    answered = contents(client, batch)
    assert len(answered) == batch.request_counts.completed
    rest = read(client, batch.error_file_id)
    assert {one["error"]["code"] for one in rest} == {"batch_expired"}
    assert sorted([*answered, *(one["custom_id"] for one in rest)]) == sorted(f"q{n}" for n in range(30))
    assert slow._store.run(run.run_id).state == "stopped"
    with pytest.raises(openai.BadRequestError, match="is expired"):
        client.batches.cancel(batch.id)


def test_a_batch_whose_model_is_never_loaded_expires(make_scripted_runtime):
    runtime = make_scripted_runtime()
    with serving(runtime) as (server, _client):
        client = client_of(server)
        runtime.unload()
        until(lambda: runtime.status().phase == "empty")
        batch = begin(client, [line(0)])
        until(lambda: BatchRecords(server._store).find(batch.id).run_id)
        make_late(server, batch)
        batch = reached(client, batch, *ENDED)
        assert (batch.status, batch.output_file_id, batch.error_file_id) == ("expired", None, None)
        assert server._store.runs(drafts=True) == []


def test_a_batch_expires_also_while_nobody_serves(make_scripted_runtime):
    runtime = make_scripted_runtime(scripted_tokens_per_s=40, max_num_seqs=2)
    with serving(runtime) as (server, _client):
        batch = begin(client_of(server), long_lines(20))
        until(lambda: client_of(server).batches.retrieve(batch.id).request_counts.completed >= 2)
    store = Store(runtime.settings.catalogue_path)
    records = BatchRecords(store)
    records.change(batch.id, times={**records.find(batch.id).times, "expires_at": int(time.time())})
    store.close()
    with serving(runtime) as (server, _client):
        batch = reached(client_of(server), batch, *ENDED)
        assert batch.status == "expired" and batch.request_counts.completed >= 2


def test_a_batch_of_before_there_were_ends_has_none(slow):
    client = client_of(slow)
    batch = begin(client, long_lines(4))
    BatchRecords(slow._store).change(batch.id, times={})
    batch = reached(client, batch, *ENDED)
    assert (batch.status, batch.expires_at, batch.expired_at) == ("completed", None, None)


def test_a_batch_whose_run_was_deleted_fails(slow):
    client = client_of(slow)
    batch = begin(client, long_lines(30))
    run_id = until(lambda: [one.run_id for one in slow._store.runs() if one.state == "running"])[0]
    jobs = slow._jobs()
    jobs.pause(run_id)
    jobs.wait(run_id, 20)
    jobs.delete(run_id)
    batch = reached(client, batch, *ENDED)
    assert (batch.status, batch.errors.data[0].code) == ("failed", "run_deleted")


def test_batches_wait_for_their_engine(make_scripted_runtime):
    runtime = make_scripted_runtime(scripted_tokens_per_s=40, max_num_seqs=2)
    with serving(runtime) as (server, _client):
        client = client_of(server)
        runtime.unload()
        until(lambda: runtime.status().phase == "empty")
        batch = begin(client, long_lines(30))
        assert client.batches.retrieve(batch.id).status == "validating"
        runtime.load(EngineSpec(engine="scripted", max_num_seqs=2))
        until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 2)
        runtime.unload()
        until(lambda: [one.state for one in server._store.runs()] == ["failed"])
        assert client.batches.retrieve(batch.id).status == "in_progress"
        runtime.load(EngineSpec(engine="scripted", max_num_seqs=64))
        batch = reached(client, batch, *ENDED)
        assert (batch.status, batch.request_counts.completed) == ("completed", 30)


def test_a_file_deleted_while_its_batch_waits_is_not_missed(slow):
    client = client_of(slow)
    batch = begin(client, long_lines(2))
    reached(client, batch, "in_progress", "completed")
    client.files.delete(batch.input_file_id)
    assert reached(client, batch, *ENDED).status == "completed"


# -- whose ------------------------------------------------------------------------------


def test_a_key_sees_its_own_batches_only(fast):
    with serving(fast, api_require_key=True) as (server, _client):
        ann, bob = (client_of(server, server.keys.create(name)[1]) for name in ("ann", "bob"))
        batch = done(ann, [line(0)])
        assert [one.id for one in ann.batches.list()] == [batch.id]
        assert [one.id for one in bob.batches.list()] == []
        for ask in (
            lambda: bob.batches.retrieve(batch.id),
            lambda: bob.batches.cancel(batch.id),
            lambda: bob.files.content(batch.output_file_id),
            lambda: bob.batches.create(
                input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h"
            ),
        ):
            with pytest.raises(openai.NotFoundError):
                ask()
        assert contents(ann, batch)["q0"]


def test_a_batch_counts_for_the_tokens_of_its_keys_day(fast):
    with serving(fast) as (server, _client):
        _key, secret = server.keys.create("small", KeyLimits(tokens_per_day=20))
        client = client_of(server, secret)
        done(client, [line(number) for number in range(10)])

        def refusal():  # what the day has cost is counted anew each second
            try:
                client.files.create(file=("a.jsonl", b"{}"), purpose="batch")
            except openai.RateLimitError as error:
                return error.code

        assert until(refusal) == "insufficient_quota"


def test_lists_of_batches_go_page_by_page(api):
    client = client_of(api)
    ids = [begin(client, [line(0)]).id for _number in range(3)]
    assert [one.id for one in client.batches.list(limit=2)] == ids[::-1]  # the client asks for each page
    page = client.batches.list(limit=2)
    assert (page.has_more, [one.id for one in page.data]) == (True, ids[:0:-1])


# -- what ends the process ----------------------------------------------------------------


def test_a_server_that_starts_again_goes_on(make_scripted_runtime):
    runtime = make_scripted_runtime(scripted_tokens_per_s=40, max_num_seqs=2)
    with serving(runtime) as (server, _client):
        batch = begin(client_of(server), long_lines(6))
        until(lambda: client_of(server).batches.retrieve(batch.id).request_counts.completed >= 2)
    with serving(runtime) as (server, _client):
        batch = reached(client_of(server), batch, *ENDED)
        assert (batch.status, batch.request_counts.completed) == ("completed", 6)


@pytest.fixture
def served(settings, tmp_path):
    """Starts `python -m core serve` on the test's workspace; gives the process and its address."""
    processes = []

    def serve(tokens_per_s):
        process = subprocess.Popen(
            [sys.executable, "-m", "core", "serve", "--port", "0", "--engine", "scripted"],
            cwd=ROOT,
            env={
                **os.environ,
                "WORKBENCH_SCRIPTED_TOKENS_PER_S": tokens_per_s,
                "WORKBENCH_MAX_NUM_SEQS": "4",
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        for text in process.stdout:
            found = re.search(r"answers at (\S+)", text)
            if found:
                return process, openai.OpenAI(base_url=f"{found[1]}/v1", api_key="none", max_retries=0)
        raise AssertionError("it ended before it served")

    yield serve
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def test_no_line_is_lost_or_answered_twice_when_the_process_is_killed(served):
    process, client = served("60")
    batch = begin(client, long_lines(60))
    until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 8)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process, client = served("2000")
    kept = client.batches.retrieve(batch.id)
    assert kept.request_counts.completed >= 8
    batch = reached(client, batch, *ENDED)
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 60, 0)
    assert list(contents(client, batch)) == [f"q{number}" for number in range(60)]
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert time.time() >= batch.completed_at >= batch.finalizing_at
