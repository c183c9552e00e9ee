"""Endpoints that are kept: their addresses in the catalogue, their keys in one private file, nowhere else."""

import pytest

from core.endpoints import Endpoint, Endpoints, RemoteModel, checked_url, secret_name
from core.errors import EngineLoadError, ParameterError
from core.secrets import Secrets
from tests.openai_server import FakeServer, reply

KEY = "sk-secret-0123456789"


@pytest.fixture
def endpoints(store, settings):
    return Endpoints(store, Secrets(settings))


@pytest.mark.parametrize(
    ("written", "used"),
    [
        ("http://Server:8000", "http://server:8000/v1"),
        (" https://api.example.com/v1/ ", "https://api.example.com/v1"),
        ("http://10.0.0.1:8000/deployments/a/v1", "http://10.0.0.1:8000/deployments/a/v1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_an_address_is_written_in_one_way(written, used):
    assert checked_url(written) == used


@pytest.mark.parametrize(
    "written",
    ["", "server:8000", "ftp://server/v1", "http://", "http://a b/v1", "http://me:key@server/v1",
     "http://server/v1?key=1", "http://server:port/v1", "http://server/v1\nX: y", "file:///etc/passwd"],
)  # fmt: skip
def test_what_is_no_address_is_refused(written):
    with pytest.raises(ParameterError):
        checked_url(written)


def test_an_endpoint_is_kept_with_its_key_beside_it(endpoints, settings):
    saved = endpoints.save("http://server:8000", "Our cluster", KEY)
    assert saved == Endpoint("http://server:8000/v1", "Our cluster", has_key=True)
    endpoints.save("http://other:8000", "")
    assert [one.name for one in endpoints.list()] == ["other:8000", "Our cluster"]
    assert not endpoints.list()[0].has_key

    endpoints.save("http://server:8000/v1/", "Renamed")
    assert [one.name for one in endpoints.list()] == ["other:8000", "Renamed"]
    assert Secrets(settings).find(secret_name("http://server:8000/v1")) == KEY
    assert KEY.encode() not in settings.catalogue_path.read_bytes()
    assert KEY not in repr(endpoints.list())

    endpoints.delete("http://server:8000/v1")
    endpoints.delete("http://never:1/v1")
    assert [one.name for one in endpoints.list()] == ["other:8000"]
    assert Secrets(settings).find(secret_name("http://server:8000/v1")) is None


def test_the_models_of_a_server(endpoints, httpserver):
    listed = [
        {"id": "base", "max_model_len": 4096, "owned_by": "vllm"},
        {"id": "poet", "max_model_len": None, "parent": "base"},
        {"id": "router/model", "context_length": 131_072},
        {"id": "local.gguf", "meta": {"n_ctx_train": 2048}},
        {"id": 7}, None, {"id": ""}, {"id": "odd", "max_model_len": "long", "meta": []},
    ]  # fmt: skip
    server = FakeServer(httpserver, listed)
    server.key = KEY
    endpoints.save(server.base_url, key=KEY)
    assert endpoints.models(server.base_url) == (
        RemoteModel("base", 4096),
        RemoteModel("poet", None, "base"),
        RemoteModel("router/model", 131_072),
        RemoteModel("local.gguf", 2048),
        RemoteModel("odd"),
    )


def test_a_server_that_wants_another_key_or_is_not_there_says_so(endpoints, httpserver):
    server = FakeServer(httpserver)
    server.key = "sk-another"
    with pytest.raises(EngineLoadError, match="does not accept requests without a key"):
        endpoints.models(server.base_url)
    endpoints.save(server.base_url, key=KEY)
    with pytest.raises(EngineLoadError, match="does not accept the key") as refused:
        endpoints.models(server.base_url)
    assert KEY not in str(refused.value)
    with pytest.raises(EngineLoadError, match="can't be reached"):
        endpoints.models("http://127.0.0.1:9/v1")


def test_a_server_that_sends_something_else_says_so(endpoints, httpserver):
    server = FakeServer(httpserver)
    server.before = lambda request: reply(["no", "list"])
    with pytest.raises(EngineLoadError, match="no list of models"):
        endpoints.models(server.base_url)
