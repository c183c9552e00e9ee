"""The API's server on the scripted engine: keys, limits, engines that come and go, stop, abort."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from api_serving import serving
from waiting import until

from core.api import connections
from core.api.records import KeyLimits
from core.api.server import ApiServer
from core.errors import ApiError
from core.types import EngineSpec, Priority

ROOT = Path(__file__).parents[1]
LONG = {"prompt": "Go on", "max_tokens": 5000, "min_tokens": 5000}
SHORT = {"prompt": "Hi", "max_tokens": 3}


@pytest.fixture
def api(runtime):
    """The server and a client; the engine writes 100 tokens a second."""
    with serving(runtime) as found:
        yield found


@pytest.fixture
def guarded(runtime):
    """The same, asking for keys."""
    with serving(runtime, api_require_key=True) as found:
        yield found


def bearer(secret):
    return {"Authorization": f"Bearer {secret}"}


def error_of(response):
    return response.json()["error"]


def test_engines_come_and_go_under_one_server(make_scripted_runtime):
    runtime = make_scripted_runtime()
    with serving(runtime) as (server, client):
        assert client.get("/health").status_code == 200
        assert client.post("/generate", json=SHORT).status_code == 200
        until(lambda: server.status().models == ("scripted",))
        runtime.unload()
        until(lambda: runtime.status().phase == "empty")
        refused = client.post("/generate", json=SHORT)
        assert refused.status_code == 503 and int(refused.headers["Retry-After"]) > 0
        assert "Nothing is loaded" in error_of(refused)["message"] or error_of(refused)["message"]
        assert client.get("/health").status_code == 503
        runtime.load(EngineSpec(engine="scripted"))
        runtime.wait_ready(20)
        assert client.post("/generate", json=SHORT).status_code == 200
        assert server.status().phase == "serving"


def test_other_engines_say_that_the_openai_api_needs_vllm(api):
    _server, client = api
    refused = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}]})
    assert refused.status_code == 501
    assert "vLLM" in error_of(refused)["message"] and set(error_of(refused)) == {
        "message", "type", "param", "code"
    }  # fmt: skip


def test_routes_that_change_the_engine_are_not_there(api):
    _server, client = api
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/scale_elastic_ep", "/sleep", "/docs"):
        assert client.post(path, json={}).status_code == 404, path
    assert client.get("/generate").status_code == 405


def test_stop_and_start_again_on_the_same_port(runtime, store):
    server = ApiServer(runtime, store, runtime.settings)
    try:
        server.start(port=0)
        port = server.wait(20).port
        with pytest.raises(ApiError, match="at work already"):
            server.start()
        server.stop()
        until(lambda: server.status().phase == "stopped")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}/health")
        server.start(port=port)
        assert server.wait(20).url == f"http://127.0.0.1:{port}"
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    finally:
        server.close()
        server.close()
    assert server.status().phase == "stopped"


def test_an_address_that_cannot_be_had_is_told_with_what_to_do(runtime, store):
    server = ApiServer(runtime, store, runtime.settings)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for host, port, words in (
            ("127.0.0.1", taken.getsockname()[1], "another program has the port. Choose another"),
            ("192.0.2.1", 0, "no such address. Use 127.0.0.1"),
            ("no such host", 0, "no address"),
        ):
            server.start(host, port)
            status = server.wait(20)
            assert status.phase == "failed" and words in status.error and status.url is None
            until(lambda: server._future.done())
    server.close()


def test_beyond_this_machine_a_key_is_asked_for(runtime, store):
    server = ApiServer(runtime, store, runtime.settings)
    try:
        server.start("0.0.0.0", 0)
        status = server.wait(20)
        assert status.needs_key and status.url == f"http://127.0.0.1:{status.port}"
        refused = httpx.get(f"{status.url}/v1/models")
        assert refused.status_code == 401 and refused.headers["WWW-Authenticate"] == "Bearer"
        assert httpx.get(f"{status.url}/health").status_code == 200  # tells nothing
        _key, secret = server.keys.create("me")
        assert httpx.get(f"{status.url}/v1/models", headers=bearer(secret)).status_code == 200
    finally:
        server.close()


def test_every_path_but_health_asks_for_the_key(guarded):
    server, client = guarded
    _key, secret = server.keys.create("me")
    for path in ("/v1/models", "/metrics", "/tokenize", "/generate", "/v1/files", "/version", "/nothing"):
        for headers in ({}, bearer("wb-" + "x" * 43), {"Authorization": secret}):
            assert client.get(path, headers=headers).status_code == 401, path
    assert client.get("/nothing", headers=bearer(secret)).status_code == 404


def test_a_key_is_kept_as_a_hash_and_shown_once(guarded):
    server, client = guarded
    key, secret = server.keys.create("colleague")
    assert secret.startswith(key.start) and len(secret) > 40
    client.get("/v1/models", headers=bearer(secret))
    server.keys.refresh()
    server.usage.flush()
    home = server._settings.home
    assert not [path for path in home.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert secret not in repr(server.keys.list()) and server.keys.list()[0].last_used_at is not None


def test_a_revoked_key_opens_nothing_any_more(guarded):
    server, client = guarded
    key, secret = server.keys.create("me")
    assert client.get("/v1/models", headers=bearer(secret)).status_code == 200
    server.keys.revoke(key.key_id)
    assert client.get("/v1/models", headers=bearer(secret)).status_code == 401
    assert server.keys.list() == () and server.keys.list(revoked=True)[0].revoked_at is not None
    with pytest.raises(ApiError):
        server.keys.revoke(key.key_id)
    server.keys.create("me")  # the name is free again


def test_a_key_revoked_by_another_process_is_refused_soon(guarded, store):
    server, client = guarded
    key, secret = server.keys.create("me")
    with serving_of_another(server) as other:
        other.keys.revoke(key.key_id)
    until(lambda: client.get("/v1/models", headers=bearer(secret)).status_code == 401)


def serving_of_another(server):
    import contextlib

    return contextlib.closing(ApiServer(server._runtime, server._store, server._settings))


def test_names_and_limits_of_keys_are_checked(guarded):
    server, _client = guarded
    key, _secret = server.keys.create("me", KeyLimits(priority=0, requests_per_minute=1, tokens_per_day=1))
    for wrong in ("", "  ", "two\nlines", "x" * 81, "ME"):
        with pytest.raises(ApiError):
            server.keys.create(wrong)
    for limits in (KeyLimits(priority=10), KeyLimits(priority=-1), KeyLimits(requests_per_minute=0)):
        with pytest.raises(ApiError):
            server.keys.set_limits(key.key_id, limits)
    server.keys.set_limits(key.key_id, KeyLimits(priority=9))
    assert server.keys.list()[0].limits == KeyLimits(priority=9)


def test_requests_a_minute_are_limited_by_key(guarded):
    server, client = guarded
    key, secret = server.keys.create("slow", KeyLimits(requests_per_minute=2))
    _other, free = server.keys.create("free")
    statuses = [client.post("/generate", json=SHORT, headers=bearer(secret)).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    refused = client.post("/generate", json=SHORT, headers=bearer(secret))
    assert 0 < int(refused.headers["Retry-After"]) <= 60
    assert error_of(refused)["code"] == "rate_limit_exceeded"
    assert client.post("/generate", json=SHORT, headers=bearer(free)).status_code == 200
    server.keys.set_limits(key.key_id, KeyLimits(requests_per_minute=3))
    assert client.post("/generate", json=SHORT, headers=bearer(secret)).status_code == 200


def test_tokens_a_day_are_limited_by_key(guarded):
    server, client = guarded
    _key, secret = server.keys.create("small", KeyLimits(tokens_per_day=5))
    first = client.post("/generate", json=SHORT, headers=bearer(secret))
    assert first.status_code == 200 and first.json()["usage"]["total_tokens"] >= 5
    refused = client.post("/generate", json=SHORT, headers=bearer(secret))
    assert refused.status_code == 429 and error_of(refused)["code"] == "insufficient_quota"


def test_a_page_that_had_its_name_point_here_is_refused(api):
    _server, client = api
    for host in ("evil.example", "evil.example:8000", "192.0.2.1", "", "127.0.0.1.evil.example"):
        refused = client.get("/v1/models", headers={"Host": host})
        assert refused.status_code == 421, host
    for host in ("localhost", "127.0.0.1:1", "[::1]:8000", "LOCALHOST:80"):
        assert client.get("/v1/models", headers={"Host": host}).status_code == 200, host


def test_a_name_may_be_allowed(runtime):
    with serving(runtime, api_allowed_hosts="llm.example.org, other") as (_server, client):
        assert client.get("/v1/models", headers={"Host": "llm.example.org"}).status_code == 200
        assert client.get("/v1/models", headers={"Host": "example.org"}).status_code == 421


def test_pages_of_other_sites_may_not_ask_without_a_key(api, guarded):
    _server, client = api
    foreign = client.post("/generate", json=SHORT, headers={"Origin": "https://evil.example"})
    assert foreign.status_code == 403
    assert client.post("/generate", json=SHORT, headers={"Origin": "null"}).status_code == 403
    plain = client.get("/v1/models").headers
    assert plain["cross-origin-resource-policy"] == "same-origin"
    assert plain["x-content-type-options"] == "nosniff"
    own = {"Origin": str(client.base_url).rstrip("/")}
    assert client.post("/generate", json=SHORT, headers=own).status_code == 200
    server, keyed = guarded
    _key, secret = server.keys.create("me")
    headers = {"Origin": "https://app.example", **bearer(secret)}
    assert keyed.post("/generate", json=SHORT, headers=headers).status_code == 200


def test_a_page_of_an_allowed_origin_may_ask_and_read_the_answer(runtime):
    page = {"Origin": "https://app.example"}
    question = {
        **page,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
        "Access-Control-Request-Private-Network": "true",
    }
    allowed = "https://App.example, http://localhost:3000"
    with serving(runtime, api_allowed_origins=allowed, api_require_key=True) as (server, client):
        may = client.options("/v1/chat/completions", headers=question)
        assert (may.status_code, may.content) == (204, b"")
        assert may.headers["access-control-allow-origin"] == "https://app.example"
        assert may.headers["access-control-allow-headers"] == "authorization,content-type,x-stainless-os"
        assert "POST" in may.headers["access-control-allow-methods"]
        assert may.headers["access-control-allow-private-network"] == "true"
        refused = client.post("/generate", json=SHORT, headers=page)  # the page may read why
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://app.example"
        _key, secret = server.keys.create("me")
        answer = client.post("/generate", json=SHORT, headers={**page, **bearer(secret)})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert answer.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in answer.headers
        for other in ("https://evil.example", "http://app.example", "https://app.example:444", "null"):
            foreign = {**question, "Origin": other}
            assert client.options("/v1/chat/completions", headers=foreign).status_code == 401, other
            kept_back = client.post("/generate", json=SHORT, headers={**bearer(secret), "Origin": other})
            assert "access-control-allow-origin" not in kept_back.headers
            assert kept_back.headers["vary"] == "Origin"
        wrong = client.options("/v1/models", headers={**question, "Host": "evil.example"})
        assert wrong.status_code == 421
        server.usage.flush()
        counted = {row.endpoint for row in server.usage.latest()}
        assert counted == {"/generate"}  # questions beforehand are no requests


def test_an_allowed_origin_needs_no_key_where_nobody_does(runtime):
    with serving(runtime, api_allowed_origins="http://localhost:3000") as (_server, client):
        asked = client.post("/generate", json=SHORT, headers={"Origin": "http://localhost:3000"})
        assert asked.status_code == 200
        for other in ("http://localhost:3001", "https://localhost:3000"):
            assert client.post("/generate", json=SHORT, headers={"Origin": other}).status_code == 403


def test_no_page_of_another_site_may_ask_where_none_is_named(api):
    _server, client = api
    question = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    refused = client.options("/generate", headers=question)
    assert refused.status_code == 403
    assert "WORKBENCH_API_ALLOWED_ORIGINS" in refused.json()["error"]["message"]
    assert not [name for name in refused.headers if name.startswith("access-control") or name == "vary"]


def test_large_bodies_are_refused_told_or_not(runtime):
    with serving(runtime, api_max_body_bytes=2000) as (_server, client):
        told = client.post("/generate", content=b"x" * 2001)
        untold = client.post("/generate", content=iter([b"x" * 500] * 5))
        for refused in (told, untold):
            assert refused.status_code == 413 and error_of(refused)["code"] == "body_too_large"
        assert client.post("/generate", json=SHORT).status_code == 200


def test_requests_at_once_are_bounded(runtime):
    with serving(runtime, api_max_requests=1) as (server, client):
        with client.stream("POST", "/generate", json={**LONG, "stream": True}) as answer:
            lines = answer.iter_lines()  # kept: without its reader httpx closes the connection
            next(lines)
            refused = httpx.post(f"{server.status().url}/generate", json=SHORT)
            assert refused.status_code == 429 and refused.headers["Retry-After"] == "1"
            assert httpx.get(f"{server.status().url}/v1/models").status_code == 200
        until(lambda: not server.live())
        assert client.post("/generate", json=SHORT).status_code == 200


def test_live_requests_are_seen_with_their_tokens_and_can_be_ended(guarded):
    server, _client = guarded
    _key, secret = server.keys.create("me")
    found = []
    asking = threading.Thread(
        target=lambda: found.append(
            httpx.post(f"{server.status().url}/generate", json=LONG, headers=bearer(secret), timeout=60)
        )
    )
    asking.start()
    (one,) = until(server.live)
    assert (one.key_name, one.endpoint, one.state) == ("me", "/generate", "waiting")
    until(lambda: server.live()[0].model == "scripted")
    assert server._runtime.in_use()["API requests"] == 1
    server.abort(one.request_id)
    asking.join(20)
    assert found[0].status_code == 400 and error_of(found[0])["code"] == "aborted"
    until(lambda: not server.live())
    server.abort(one.request_id)  # it is gone: nothing happens


def test_a_client_that_leaves_ends_its_request(api):
    server, client = api
    with client.stream("POST", "/generate", json={**LONG, "stream": True}) as answer:
        lines = answer.iter_lines()
        next(lines)
        until(lambda: server.live()[0].output_tokens > 1)
    one = until(lambda: booked(server, "/generate"))
    assert one.status == 499 and 0 < one.output_tokens < 5000 and one.ttft_s is not None


def test_stop_ends_what_is_being_answered(api):
    server, client = api
    with client.stream("POST", "/generate", json={**LONG, "stream": True}) as answer:
        lines = answer.iter_lines()
        next(lines)
        server.stop()
        try:
            rest = "".join(lines)
        except httpx.RemoteProtocolError:
            rest = "aborted"
        assert "aborted" in rest
    until(lambda: server.status().phase == "stopped")
    assert server.live() == ()


def test_the_key_gives_the_place_among_waiting_requests(guarded, monkeypatch):
    server, client = guarded
    seen = []
    engine = server._runtime.engine
    complete = engine.complete
    monkeypatch.setattr(
        engine, "complete", lambda request: seen.append(request.priority) or complete(request)
    )
    for number, priority in enumerate((0, 9, 5)):
        _key, secret = server.keys.create(f"{number}", KeyLimits(priority=priority))
        client.post("/generate", json=SHORT, headers=bearer(secret))
    assert seen == [0, 9, 5]
    assert all(Priority.COMPARE < priority < Priority.BATCH for priority in seen)


def test_everything_is_booked_but_health(guarded):
    server, client = guarded
    key, secret = server.keys.create("me")
    client.get("/health")
    client.get("/v1/models")
    client.post("/generate", json=SHORT, headers=bearer(secret))
    client.post("/generate", json={"promt": ""}, headers=bearer(secret))
    rows = until(lambda: server.usage.flush() or (len(found := server.usage.latest()) >= 3 and found))
    assert [(one.endpoint, one.status, one.key_id) for one in reversed(rows)] == [
        ("/v1/models", 401, None), ("/generate", 200, key.key_id), ("/generate", 400, key.key_id)
    ]  # fmt: skip


def test_a_connection_that_asks_nothing_is_closed(runtime, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_PATIENCE_S", 0.3)
    with serving(runtime) as (server, client):
        for begun in (b"", b"GET /v1/models HTTP/1.1\r\nHost: localh"):
            with socket.create_connection(("127.0.0.1", server.status().port), timeout=20) as slow:
                slow.sendall(begun)
                assert ended(slow)
        # one that asks in time is kept
        assert client.get("/v1/models").status_code == 200


def test_an_endless_head_is_cut_off(api):
    server, _client = api
    with socket.create_connection(("127.0.0.1", server.status().port), timeout=20) as huge:
        huge.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises(OSError):
            for number in range(100_000):
                huge.sendall(b"X-%d: %s\r\n" % (number, b"y" * 1000))


def test_a_client_that_does_not_read_is_left(api, monkeypatch):
    monkeypatch.setattr(connections, "READ_PATIENCE_S", 0.3)
    server, client = api
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x" * 1000}}
    content = (json.dumps(line).encode() + b"\n") * 20_000
    found = client.post("/v1/files", files={"file": ("a.jsonl", content)}, data={"purpose": "batch"})
    path = f"/v1/files/{found.json()['id']}/content"
    with socket.socket() as idle:
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        idle.settimeout(20)
        idle.connect(("127.0.0.1", server.status().port))
        idle.sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
        until(lambda: booked(server, path))
        assert booked(server, path).status == 499
    assert client.get(path).content == content  # who reads gets it all


def booked(server, path):
    server.usage.flush()
    return next((one for one in server.usage.latest() if one.endpoint == path), None)


def ended(connection):
    """Whether the server closed it."""
    try:
        return connection.recv(10) == b""
    except ConnectionResetError:
        return True


# -- python -m core serve -----------------------------------------------------


@pytest.fixture
def serve(settings):
    """Starts the command; ends what is left."""
    started = []

    def start(*arguments):
        command = [sys.executable, "-W", "error", "-m", "core", "serve", "--port", "0", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=ROOT, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=20)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_serve_prints_url_key_and_a_curl_line_and_ends_quietly(serve, ending):
    process = serve("--engine", "scripted", "--key", "me")
    secret = re.search(r"key me: (wb-\S+)", process.stdout.readline())[1]
    url = re.search(r"answers at (\S+)", process.stdout.readline())[1]
    assert process.stdout.readline().startswith(f"curl '{url}")
    answer = httpx.post(f"{url}/generate", json=SHORT, headers=bearer(secret))
    assert answer.status_code == 200 and answer.json()["response"]
    process.send_signal(ending)
    rest, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in errors
    assert secret not in errors + rest


def test_serve_fails_when_the_model_cannot_be_loaded(serve, tmp_path):
    process = serve("--engine", "transformers", "--model", str(tmp_path / "nothing"))
    _out, errors = process.communicate(timeout=60)
    assert process.returncode in (1, 2) and "error:" in errors and "Traceback" not in errors


def test_serve_fails_when_the_port_is_taken(serve):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = serve("--engine", "scripted", "--port", str(taken.getsockname()[1]))
        _out, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "another program has the port" in errors
