"""The API page: start and stop, programs that run, keys, live requests, hours."""

import datetime as dt
import re
import socket
import subprocess
import sys
import threading

import httpx
import pytest
from apps import button, opened, turned_to, until

from core.api.records import HourStats
from pages.parts import api_charts, api_words, session

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


@pytest.fixture
def app(workspace, monkeypatch):
    monkeypatch.setenv("WORKBENCH_API_PORT", "0")
    return opened("api")


@pytest.fixture
def slow_app(workspace, monkeypatch):
    """Its answers take a second or more."""
    monkeypatch.setenv("WORKBENCH_API_PORT", "0")
    monkeypatch.setenv("WORKBENCH_SCRIPTED_TOKENS_PER_S", "20")
    return opened("api")


def words(app):
    texts = [*app.markdown, *app.caption, *app.error, *app.warning, *app.info, *app.success]
    return "\n".join(one.value for one in texts).replace("\\", "").replace("&#58;", ":")


def codes(app):
    return [one.value for one in app.code]


def keyed(app, key):
    return next(one for one in app.button if one.key == key)


def section(app, name):
    next(one for one in app.segmented_control if one.key == "api:section").set_value(name).run()
    assert not app.exception


def started(app):
    """Click Start, and give the address without its path."""
    keyed(app, "api:start").click().run()
    until(app, lambda: session.api().status().phase == "serving" and session.api().status().models)
    return session.api().status().url


def generate(url, **more):
    return httpx.post(f"{url}/generate", json={"prompt": "Hello", "max_tokens": 8}, timeout=30, **more)


def test_it_is_started_asked_counted_and_stopped(app):
    assert "What it offers" in [one.value for one in app.subheader]
    url = started(app)
    assert f"{url}/v1" in codes(app)
    assert any(f"{url}/v1/chat/completions" in code for code in codes(app))
    assert "needs no key" in words(app)
    assert generate(url).status_code == 200
    section(app, "activity")
    until(app, lambda: session.api().usage.latest())
    assert next(one for one in app.metric if one.label == "Requests").value == "1"
    assert "Nobody asks right now." in words(app)
    table = app.dataframe[0].value
    assert list(table["End"]) == ["200 answered"] and list(table["Endpoint"]) == ["/generate"]
    keyed(app, "api:stop").click().run()
    until(app, lambda: session.api().status().phase == "stopped")
    with pytest.raises(httpx.ConnectError):
        generate(url)


def test_the_offered_programs_run_as_they_stand(app):
    """Those that any engine answers; the others run against the real one in test_api_programs_engine."""
    started(app)
    next(one for one in app.segmented_control if one.key == "api:task").set_value("generate").run()
    shell = next(code for code in codes(app) if code.startswith("curl"))
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=30, check=True)
    assert '"response"' in done.stdout
    python = next(code for code in codes(app) if "import requests" in code)
    done = subprocess.run([sys.executable, "-c", python], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_an_address_for_others_asks_for_a_key_which_is_shown_once(app):
    next(one for one in app.selectbox if one.key == "api:host").set_value("0.0.0.0").run()
    url = started(app)
    assert "nobody can use it" in words(app)
    assert generate(url).status_code == 401
    section(app, "keys")
    next(one for one in app.text_input if one.label == "Name").set_value("Ana's *notebook*")
    next(one for one in app.number_input if one.key == "api:make:requests").set_value(2)
    button(app, "Make it").click().run()
    secret = next(code for code in codes(app) if code.startswith("wb-"))
    assert f"export OPENAI_API_KEY={secret}" in codes(app)
    headers = {"Authorization": f"Bearer {secret}"}
    until(app, lambda: generate(url, headers=headers).status_code == 200)
    assert "Ana's *notebook*" in words(app) and "at most 2 requests a minute" in words(app)
    assert "nobody can use it" not in words(app)
    keyed(app, "api:made:done").click().run()
    assert secret not in "\n".join((*codes(app), words(app)))
    assert secret not in str(app.session_state._state.filtered_state)
    section(app, "ask")
    assert any("Bearer $OPENAI_API_KEY" in code for code in codes(app))


def test_a_key_is_limited_anew_and_revoked(app):
    keys = session.api().keys
    key, _secret = keys.create("Ana")
    keys.create("Bob")
    section(app, "keys")
    field = next(one for one in app.number_input if one.key == f"api:limits:{key.key_id}:tokens")
    field.set_value(5_000)
    next(one for one in app.button if one.label == "Save the limits").click().run()
    assert {one.name: one.limits.tokens_per_day for one in keys.list()} == {"Ana": 5_000, "Bob": None}
    keyed(app, f"api:revoke:{key.key_id}").click().run()
    assert len(keys.list()) == 2  # it asks first
    keyed(app, f"api:revoke:{key.key_id}:sure:yes").click().run()
    assert [one.name for one in keys.list()] == ["Bob"]
    assert "Ana" in words(app) and "revoked just now" in words(app)


def test_a_name_that_is_taken_is_refused_in_words(app):
    session.api().keys.create("Ana")
    section(app, "keys")
    next(one for one in app.text_input if one.label == "Name").set_value("Ana")
    button(app, "Make it").click().run()
    assert "There is a key 'Ana' already" in words(app)


def test_a_busy_port_is_named_and_another_can_be_tried(app):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        next(one for one in app.number_input if one.key == "api:port").set_value(port).run()
        keyed(app, "api:start").click().run()
        until(app, lambda: session.api().status().phase == "failed")
        assert str(port) in words(app)
        assert keyed(app, "api:start").label == "Start"
    next(one for one in app.number_input if one.key == "api:port").set_value(0).run()
    assert started(app)


def test_a_live_request_is_seen_and_ended(slow_app):
    url = started(slow_app)
    section(slow_app, "activity")
    answers = []
    body = {"prompt": "Hello", "max_tokens": 400, "ignore_eos": True}
    asking = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{url}/generate", json=body, timeout=60))
    )
    asking.start()
    until(slow_app, lambda: session.api().live())
    assert "Without a key" in words(slow_app) and "/generate" in words(slow_app)
    keyed(slow_app, "api:stop").click().run()  # which would cut somebody off
    assert "Stopping breaks off 1 request." in words(slow_app)
    keyed(slow_app, "api:stop:no").click().run()
    (live,) = session.api().live()
    keyed(slow_app, f"api:abort:{live.request_id}").click().run()
    asking.join(20)
    until(slow_app, lambda: not session.api().live())
    assert answers[0].status_code >= 400
    assert session.api().status().phase == "serving"


def test_without_an_engine_it_serves_and_says_so(workspace, monkeypatch):
    monkeypatch.setenv("WORKBENCH_API_PORT", "0")
    app = opened("api")
    started(app)
    session.runtime().unload()
    until(app, lambda: session.runtime().status().phase == "empty")
    assert "No model is loaded: programs are told to come back later." in words(app)


def test_nobody_has_asked_yet(app):
    section(app, "activity")
    assert "Nobody asked in the last 24 hours." in words(app)
    section(app, "keys")
    assert any(one.label == "Make a key" for one in app.expander)


def hour(number=0, **values):
    empty = {"requests": 0, "errors": 0, "prompt_tokens": 0, "output_tokens": 0, "p50_s": None, "p95_s": None}
    return HourStats(hour=NOON + dt.timedelta(hours=number), **{**empty, **values})


def utc(when):
    return when


def test_the_hour_that_runs_is_measured_by_its_part_so_far():
    hours = [hour(0, output_tokens=7200), hour(1, output_tokens=600)]
    (bars,) = api_charts.tokens(hours, utc, NOON + dt.timedelta(hours=1, minutes=5)).data
    assert list(bars.y) == [2.0, 2.0]


def test_hours_without_answers_are_gaps_in_the_latency():
    hours = [hour(0, p50_s=1.0, p95_s=3.0), hour(1, requests=4, errors=4), hour(2, p50_s=2.0, p95_s=2.0)]
    p50, p95 = api_charts.latencies(hours, utc, first_token=False).data
    assert (list(p50.y), list(p95.y)) == ([1.0, None, 2.0], [3.0, None, 2.0])
    assert not p50.connectgaps


def test_errors_stand_on_top_of_what_was_answered():
    answered, others = api_charts.requests([hour(0, requests=5, errors=2)], utc).data
    assert (list(answered.y), list(others.y)) == ([3], [2])
    assert "12:00 to 13:00" in answered.customdata[0]


@pytest.mark.parametrize(
    ("seconds", "expected"), [(5, "just now"), (300, "5 min ago"), (7200, "2 h ago"), (10**6, r"on \d{4}-")]
)
def test_how_long_ago(seconds, expected):
    assert re.match(expected, api_words.ago(dt.datetime.now(dt.UTC) - dt.timedelta(seconds=seconds)))


def test_the_chats_code_asks_the_api_where_it_is(app):
    url = started(app)
    turned_to(app, "chat")
    app.session_state["chat:code"] = True
    app.run()
    assert not app.exception
    python, curl = codes(app)[-2:]
    assert f'"{url}/v1"' in python and f"'{url}/v1/chat/completions'" in curl
    assert "the workbench's API" in words(app) and "It is off" not in words(app)
    session.api().stop()
    until(app, lambda: session.api().status().phase == "stopped")
    assert "It is off: start it on the API page." in words(app)


def test_unloading_names_the_requests_that_it_would_break_off(slow_app):
    url = started(slow_app)
    body = {"prompt": "Hello", "max_tokens": 400, "ignore_eos": True}
    asking = threading.Thread(target=lambda: httpx.post(f"{url}/generate", json=body, timeout=60))
    asking.start()
    until(slow_app, lambda: session.api().live())
    button(slow_app, "Unload").click().run()
    assert "1 API request (ends with an error)" in words(slow_app)
    session.api().abort(session.api().live()[0].request_id)
    asking.join(20)
