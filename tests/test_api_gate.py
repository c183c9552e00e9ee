"""The gate by itself, in front of an app that tells what reached it."""

import asyncio
import datetime as dt
import json

import pytest

from core.api import gate as gate_module
from core.api import live
from core.api.gate import Gate, is_loopback
from core.api.keys import ApiKeys
from core.api.limits import Limits
from core.api.live import Call, LiveCalls
from core.api.openai_errors import HttpError
from core.api.records import ApiKey, KeyLimits
from core.api.usage import Usage


@pytest.fixture
def make_gate(store):
    usage = Usage(store)

    def make(app, **options):
        values = {"needs_key": False, "bound_to": "127.0.0.1", "most_body_bytes": 100, **options}
        limits = Limits(lambda key_id: 0, at_once=4)
        gate = Gate(app, keys=ApiKeys(store), limits=limits, live=LiveCalls(), usage=usage, **values)
        gate.usage = usage
        return gate

    yield make
    usage.close()


async def tell(scope, receive, send):
    """Answers with the headers and the body that came through the gate."""
    message = await receive()
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    told = {"headers": headers, "body": message["body"].decode(), "call": live.current().request_id}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(told).encode()})


def ask(gate, *, method="POST", path="/generate", headers=None, body=()):
    """(status, body) of one request; `body`: its pieces, None where nothing comes."""
    parts = list(body) or [b""]
    sent = []

    async def receive():
        part = parts.pop(0)
        if part is None:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    named = {"host": "127.0.0.1", **(headers or {})}
    pairs = [(name.encode(), value.encode()) for name, value in named.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": pairs}
    asyncio.run(gate(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def test_a_body_in_pieces_arrives_whole(make_gate):
    status, answer = ask(make_gate(tell), body=[b"one ", b"two ", b"three"])
    assert status == 200 and json.loads(answer)["body"] == "one two three"


def test_a_client_chooses_neither_its_request_id_nor_its_priority(make_gate):
    chosen = {"x-request-id": "mine", "x-vllm-priority": "-100", "x-data-parallel-rank": "3"}
    _status, answer = ask(make_gate(tell), headers=chosen)
    told = json.loads(answer)
    assert told["headers"] == {"host": "127.0.0.1", "x-request-id": told["call"]}
    assert told["call"] != "mine"


def test_a_body_that_stops_coming_is_given_up(make_gate, monkeypatch):
    monkeypatch.setattr(gate_module, "_BODY_PATIENCE_S", 0.05)
    status, answer = ask(make_gate(tell), body=[b"{", None])
    assert status == 408 and json.loads(answer)["error"]["code"] == "body_too_slow"


def test_files_go_through_as_they_come(make_gate):
    status, answer = ask(make_gate(tell), path="/v1/files", body=[b"x" * 1000, b"y"])
    assert status == 200 and json.loads(answer)["body"] == "x" * 1000


def test_a_flood_without_keys_does_not_fill_the_disk(make_gate):
    gate = make_gate(tell, needs_key=True)
    assert [ask(gate)[0] for _ in range(200)] == [401] * 200
    gate.usage.flush()
    assert len(gate.usage.latest(500)) == 60


def test_what_an_app_does_after_a_good_beginning_is_booked_as_it_ended(make_gate):
    async def breaks(scope, receive, send):
        live.current().failed = 503
        await tell(scope, receive, send)

    gate = make_gate(breaks)
    ask(gate)
    gate.usage.flush()
    assert gate.usage.latest()[0].status == 503


def test_a_length_that_is_no_number_is_refused(make_gate):
    for length in ("-1", "ten", "101"):
        assert ask(make_gate(tell), headers={"content-length": length})[0] == 413


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),
     ("::", False), ("192.168.1.2", False), ("", False), ("localhost.example.org", False)],
)  # fmt: skip
def test_what_is_reached_from_this_machine_only(host, loopback):
    assert is_loopback(host) is loopback


def test_bound_to_all_addresses_any_address_may_be_called_but_no_foreign_name(make_gate):
    gate = make_gate(tell, bound_to="0.0.0.0", allowed_hosts=["gpu-box"])
    for host, status in (("10.0.0.7:8000", 200), ("[fe80::1]:8000", 200), ("GPU-box:80", 200), ("a.b", 421)):
        assert ask(gate, headers={"host": host})[0] == status, host


def test_a_minute_is_any_60_seconds():
    now = [0.0]
    limits = Limits(lambda key_id: 0, at_once=9, now=lambda: now[0])
    key = a_key(KeyLimits(requests_per_minute=2))
    for now[0] in (0.0, 30.0):
        limits.admit(key, 0)
    now[0] = 59.0
    with pytest.raises(HttpError) as refused:
        limits.admit(key, 0)
    assert refused.value.status == 429 and refused.value.headers == {"Retry-After": "1"}
    now[0] = 60.0
    limits.admit(key, 0)
    with pytest.raises(HttpError) as refused:
        limits.admit(key, 0)
    assert refused.value.headers == {"Retry-After": "30"}


def a_key(limits):
    return ApiKey(key_id="k", name="k", start="wb-", created_at=dt.datetime.now(dt.UTC), limits=limits)


def test_a_call_that_was_ended_before_it_could_be_is_ended_at_once():
    ended = []
    call = Call(request_id="a", endpoint="/generate")
    call.abort()
    with call.abortable(lambda: ended.append(True)):
        pass
    assert ended == [True]
