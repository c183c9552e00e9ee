"""/v1/files over HTTP: bytes come back as they went, names from outside stay names, keys see their own."""

import asyncio
import os
import socket
from collections import namedtuple

import pytest
from api_serving import serving
from starlette.requests import Request
from waiting import until

from core.api import uploads
from core.api.openai_errors import HttpError
from core.api.uploads import Upload

LINES = b'{"custom_id": "a"}\n{"custom_id": "\xe6\xbc\xa2"}\n'


@pytest.fixture
def fast(make_scripted_runtime):
    return make_scripted_runtime()


@pytest.fixture
def client(fast):
    with serving(fast) as (_server, client):
        yield client


@pytest.fixture
def folder(fast):
    return fast.settings.api_files_dir


def upload(client, content=LINES, name="requests.jsonl", purpose="batch", **more):
    return client.post("/v1/files", files={"file": (name, content)}, data={"purpose": purpose}, **more)


def uploaded(client, *args, **more):
    response = upload(client, *args, **more)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_file_comes_back_as_it_went(client):
    # what looks like the end of a part, across the pieces that it is sent and written in
    content = os.urandom(100_000) + b"\r\n--" * 300_000 + b"\r\n" + os.urandom(1_200_000)
    file = uploaded(client, content)
    assert (file["object"], file["bytes"], file["purpose"]) == ("file", len(content), "batch")
    found = client.get(f"/v1/files/{file['id']}/content")
    assert found.content == content
    assert found.headers["content-type"] == "application/octet-stream"
    assert found.headers["content-disposition"].startswith("attachment")
    assert client.get(f"/v1/files/{file['id']}").json() == file


def test_fields_may_come_in_any_order(client):
    parts = [("file", ("a.jsonl", LINES)), ("purpose", (None, "batch"))]
    for order in (parts, parts[::-1]):
        assert client.post("/v1/files", files=order).status_code == 200


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\data\\q.jsonl", "q.jsonl"),
        ("/", "file"),
        ("问题 1.jsonl", "问题 1.jsonl"),
        ("a\x00b.jsonl", "ab.jsonl"),
        ("x" * 500, "x" * 200),
    ],
)
def test_a_name_from_outside_is_only_shown(client, folder, name, shown):
    head = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    field = '--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    content = head.replace("\\", "\\\\").encode() + LINES + b"\r\n" + field.encode() + b"--b--\r\n"
    response = client.post(
        "/v1/files", content=content, headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert response.status_code == 200, response.text
    file = response.json()
    assert file["filename"] == shown
    assert [path.name for path in folder.iterdir()] == [f"{file['id']}.jsonl"]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([("purpose", (None, "batch"))], "has no file"),
        ([("file", ("a", LINES)), ("purpose", (None, "fine-tune"))], "purpose of a file is batch"),
        ([("file", ("a", LINES))], "purpose of a file is batch"),
        ([("file", ("a", b"")), ("purpose", (None, "batch"))], "is empty"),
        (
            [("file", ("a", LINES)), ("file", ("b", LINES)), ("purpose", (None, "batch"))],
            "more than one file",
        ),
        ([("picture", ("a", LINES)), ("purpose", (None, "batch"))], "is called file"),
        ([("file", ("a", LINES)), ("purpose", (None, "batch")), ("purpose", (None, "b"))], "given twice"),
        ([("file", ("a", LINES)), ("purpose", (None, "x" * 2000))], "purpose is too long"),
        (
            [("file", ("a", LINES)), ("purpose", (None, "batch")), ("expires_after[seconds]", (None, "9"))],
            "stay until they are deleted",
        ),
    ],
)
def test_a_form_that_says_something_else_leaves_nothing(client, folder, parts, words):
    response = client.post("/v1/files", files=parts)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]
    assert list(folder.iterdir()) == []


def test_what_is_no_form_is_refused(client, folder):
    for kind in ("application/json", "multipart/form-data", "multipart/form-data; boundary=b"):
        response = client.post("/v1/files", content=b"{}", headers={"Content-Type": kind})
        assert response.status_code == 400, kind
    assert list(folder.iterdir()) == []


def test_lists_are_read_page_by_page_newest_first(client):
    ids = [uploaded(client, name=f"{number}.jsonl")["id"] for number in range(5)]
    everything = client.get("/v1/files").json()
    assert [one["id"] for one in everything["data"]] == ids[::-1] and not everything["has_more"]
    seen, after = [], None
    while True:
        page = client.get("/v1/files", params={"limit": 2, **({"after": after} if after else {})}).json()
        seen += [one["id"] for one in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert seen == ids[::-1]
    oldest = client.get("/v1/files", params={"order": "asc", "limit": 1}).json()
    assert (oldest["first_id"], oldest["has_more"]) == (ids[0], True)
    assert client.get("/v1/files", params={"purpose": "batch_output"}).json()["data"] == []
    for wrong in ({"limit": 0}, {"limit": "x"}, {"limit": 10**6}, {"order": "up"}):
        assert client.get("/v1/files", params=wrong).status_code == 400
    assert client.get("/v1/files", params={"after": "file-none"}).status_code == 404


def test_a_deleted_file_is_gone(client, folder):
    file = uploaded(client)
    assert client.delete(f"/v1/files/{file['id']}").json() == {
        "id": file["id"], "object": "file", "deleted": True
    }  # fmt: skip
    assert list(folder.iterdir()) == []
    for path in (file["id"], f"{file['id']}/content", "file-nothing", "..", "%2e%2e%2fhome"):
        found = client.get(f"/v1/files/{path}")
        assert found.status_code == 404, path
    assert client.delete(f"/v1/files/{file['id']}").status_code == 404


def test_a_key_sees_its_own_files_only(fast):
    with serving(fast) as (server, client):
        names = ("ann", "bob")
        headers = {name: {"Authorization": f"Bearer {server.keys.create(name)[1]}"} for name in names}
        file = uploaded(client, headers=headers["ann"])
        for other in (headers["bob"], {}):
            for path in (f"/v1/files/{file['id']}", f"/v1/files/{file['id']}/content"):
                assert client.get(path, headers=other).status_code == 404
            assert client.delete(f"/v1/files/{file['id']}", headers=other).status_code == 404
            assert client.get("/v1/files", headers=other).json()["data"] == []
        assert client.get(f"/v1/files/{file['id']}/content", headers=headers["ann"]).content == LINES


def test_what_says_it_is_too_large_is_refused_before_it_comes(client, folder):
    address = (client.base_url.host, client.base_url.port)
    with socket.create_connection(address) as connection:
        connection.sendall(
            b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
    assert list(folder.iterdir()) == []


def test_half_an_upload_leaves_nothing(client, folder):
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall(
            b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        )
        until(lambda: list(folder.iterdir()))
    until(lambda: not list(folder.iterdir()))


def test_a_disk_that_is_nearly_full_takes_no_file(client, folder, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(uploads.shutil, "disk_usage", lambda _path: usage(10, 9, 1))
    response = upload(client)
    assert response.status_code == 507
    assert response.json()["error"]["code"] == "insufficient_storage"
    assert list(folder.iterdir()) == []


HEAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
TAIL = b"\r\n--b--\r\n"


def form(pieces, held=None):
    """A request whose body comes in `pieces`; `held` is called before each."""
    messages = iter(pieces)

    async def receive():
        if held:
            held()
        piece = next(messages, None)
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


@pytest.mark.parametrize("size", [1, 2, 7, 61, 5000])
def test_it_does_not_matter_where_the_network_cuts_it(tmp_path, size):
    content = b"a line\r\n--c\r\n--\r\r\n" * 20  # as the boundary begins
    body = HEAD + content + TAIL
    upload = Upload(tmp_path / "part")
    asyncio.run(upload.receive(form(body[start : start + size] for start in range(0, len(body), size))))
    assert (upload.path.read_bytes(), upload.size_bytes) == (content, len(content))
    assert upload.filename == "a"


def test_a_large_file_is_never_held_in_memory(tmp_path):
    upload, held = Upload(tmp_path / "part"), []
    pieces = [HEAD, *[bytes(64 << 10)] * 160, TAIL]
    asyncio.run(upload.receive(form(pieces, lambda: held.append(sum(map(len, upload._unwritten))))))
    assert upload.size_bytes == (tmp_path / "part").stat().st_size == 10 << 20
    assert max(held) <= (1 << 20) + (64 << 10)


def test_a_file_that_grows_too_large_is_cut_off(tmp_path):
    upload, came = Upload(tmp_path / "part"), []
    with pytest.raises(HttpError) as caught:
        asyncio.run(
            upload.receive(form([HEAD, *[bytes(1000)] * 50], lambda: came.append(1)), most_bytes=10_000)
        )
    assert (caught.value.status, caught.value.code) == (413, "file_too_large")
    assert len(came) < 15


def test_who_sends_nothing_more_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "_PATIENCE_S", 0.05)

    async def receive():
        await asyncio.sleep(60)

    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
    with pytest.raises(HttpError) as caught:
        asyncio.run(Upload(tmp_path / "part").receive(request))
    assert caught.value.status == 408
