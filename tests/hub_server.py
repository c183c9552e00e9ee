"""A local server that speaks as much of both hubs' HTTP as their own clients need, and can misbehave."""

import contextlib
import hashlib
import json
import random
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BRANCHES = ("main", "master", COMMIT, "v1")
WEIGHTS = b"\x02\x00\x00\x00\x00\x00\x00\x00{}" + random.Random(0).randbytes(3_000_000)
TINY = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}',
    "model.safetensors": WEIGHTS,
    "tokenizer.json": b"{}" * 2000,
    "README.md": b"# A model",
    "pytorch_model.bin": b"\x80\x04" * 1000,
}
_LFS_BYTES = 1000
_PIECE_BYTES = 16 << 10


@dataclass
class Model:
    """`token`: what must be sent to read its files; `gated`: even that only says who is refused."""

    files: dict[str, bytes]
    license: str = "apache-2.0"
    gated: bool = False
    token: str | None = None


@dataclass
class Served:
    """One answer with a file's content: from which byte, how many were sent, who asked."""

    path: str
    start: int
    sent: int = 0
    authorization: str | None = None
    host: str = ""


@dataclass
class HubServer:
    """What it has, how it misbehaves, and what it was asked. Sizes in bytes, by name of the file."""

    address: str = ""
    models: dict[str, Model] = field(default_factory=dict)
    bytes_per_s: float | None = None
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    damaged: Counter = field(default_factory=Counter)
    without_ranges: bool = False
    out_of_order: bool = False
    served: list[Served] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def sent(self, path):
        """Bytes of a file that left the server, over all answers."""
        return sum(one.sent for one in self.served if one.path == path)

    def starts(self, path):
        return [one.start for one in self.served if one.path == path]


@contextlib.contextmanager
def hub_server():
    hub = HubServer()

    class Handler(_Handler):
        server_hub = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def git_sha1(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def handle(self):
        with contextlib.suppress(ConnectionError):  # a client that was killed
            super().handle()

    def _answer(self):
        hub = self.server_hub
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        hub.asked.append(f"{self.command} {unquote(url.path)}")
        if hub.out_of_order:
            return self._json({"error": "maintenance"}, status=503)
        path = unquote(url.path)
        for pattern, answer in (
            (r"/api/models", self._hf_search),
            (r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", self._hf_model),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._hf_file),
            (r"/cdn/([^/]+/[^/]+)/(.+)", self._cdn),
            (r"/openapi/v1/models", self._ms_search),
            (r"/openapi/v1/models/([^/]+/[^/]+)", self._ms_model),
            (r"/api/v1/models/([^/]+/[^/]+)/repo/files", self._ms_files),
            (r"/api/v1/models/([^/]+/[^/]+)/repo", self._ms_file),
        ):
            if found := re.fullmatch(pattern, path):
                return answer(query, *found.groups())
        return self._json({"error": "not found"}, status=404)

    # -- Hugging Face ----------------------------------------------------------

    def _hf_search(self, query):
        found = [name for name in self.server_hub.models if query.get("search", "").lower() in name.lower()]
        return self._json([self._hf_info(name) for name in found])

    def _hf_info(self, name):
        model = self.server_hub.models[name]
        return {
            "id": name,
            "modelId": name,
            "sha": COMMIT,
            "downloads": 1234,
            "likes": 56,
            "gated": "manual" if model.gated else False,
            "private": False,
            "tags": [f"license:{model.license}"],
            "pipeline_tag": "text-generation",
            "lastModified": "2026-10-01T12:00:00.000Z",
            "safetensors": {"parameters": {"BF16": 1000, "F8_E4M3": 24}, "total": 1024},
        }

    def _hf_model(self, query, name, revision):
        model = self.server_hub.models.get(name)
        if model is None:
            return self._hf_error(401 if not self.headers["Authorization"] else 404, "RepoNotFound")
        if revision not in (None, *BRANCHES):
            return self._hf_error(404, "RevisionNotFound")
        files = []
        for path, content in model.files.items():
            file = {"rfilename": path, "size": len(content), "blobId": git_sha1(content)}
            if len(content) > _LFS_BYTES:
                file["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 134}
            files.append(file)
        return self._json({**self._hf_info(name), "siblings": files})

    def _hf_error(self, status, code):
        return self._json({"error": code}, status=status, headers={"X-Error-Code": code})

    def _hf_file(self, query, name, revision, path):
        model = self.server_hub.models.get(name)
        if model is None:
            return self._hf_error(404, "RepoNotFound")
        refused = self._refused(model)
        if refused == 401 and self.headers["Authorization"]:
            headers = {"X-Error-Message": "Invalid credentials in Authorization header"}
            return self._json({}, status=401, headers=headers)
        if refused:
            return self._hf_error(refused, "GatedRepo")
        if revision not in BRANCHES:
            return self._hf_error(404, "RevisionNotFound")
        if path not in model.files:
            return self._hf_error(404, "EntryNotFound")
        content = model.files[path]
        headers = {"X-Repo-Commit": COMMIT}
        if len(content) <= _LFS_BYTES:
            return self._file(path, content, headers | {"ETag": f'"{git_sha1(content)}"'})
        headers |= {"X-Linked-ETag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content))}
        # another host's name, as of a content network: the token must not go there
        port = self.server.server_port
        headers |= {"Location": f"http://localhost:{port}/cdn/{name}/{quote(path)}", "Content-Length": "0"}
        self.send_response(302)
        for key, value in headers.items():
            self.send_header(key, value)
        return self.end_headers()

    def _cdn(self, query, name, path):
        content = self.server_hub.models[name].files[path]
        return self._file(path, content, {"ETag": f'"{sha256(content)}"'})

    # -- ModelScope --------------------------------------------------------------

    def _ms_search(self, query):
        found = [name for name in self.server_hub.models if query.get("search", "").lower() in name.lower()]
        models = [self._ms_info(name) for name in found]
        data = {"models": models, "total_count": len(models), "page_number": 1, "page_size": 20}
        return self._json({"success": True, "data": data})

    def _ms_info(self, name):
        model = self.server_hub.models[name]
        size = sum(len(content) for content in model.files.values())
        return {
            "id": name, "downloads": 1234, "likes": 56, "license": model.license, "gated": model.gated,
            "file_size": size, "tasks": ["text-generation"], "last_modified": "2026-10-01T12:00:00Z",
        }  # fmt: skip

    def _ms_model(self, query, name):
        if name not in self.server_hub.models:
            return self._json({"success": False, "message": "no such model"}, status=404)
        return self._json({"success": True, "data": self._ms_info(name)})

    def _ms_files(self, query, name):
        model = self.server_hub.models.get(name)
        if model is None or query["Revision"] not in BRANCHES:
            return self._json({"Code": 10010205001, "Message": "not found", "Success": False}, status=404)
        files = [
            {"Path": path, "Name": path, "Size": len(content), "Sha256": sha256(content), "Type": "blob"}
            for path, content in model.files.items()
        ]
        return self._json({"Code": 200, "Success": True, "Data": {"Files": files}})

    def _ms_file(self, query, name):
        model = self.server_hub.models.get(name)
        if model is None or query["FilePath"] not in model.files:
            return self._json({"Code": 404, "Message": "not found"}, status=404)
        refused = self._refused(model)
        if refused:
            return self._json({"Code": refused, "Message": "refused"}, status=refused)
        path = query["FilePath"]
        return self._file(path, model.files[path], {})

    # -- both ----------------------------------------------------------------------

    def _refused(self, model):
        if model.token is None or self.headers["Authorization"] == f"Bearer {model.token}":
            return 0
        return 403 if model.gated else 401

    def _json(self, content, status=200, headers=None):
        body = json.dumps(content).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _file(self, path, content, headers):
        hub = self.server_hub
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        start, end = 0, len(content)
        if asked and not hub.without_ranges:
            start = int(asked[1])
            end = min(int(asked[2]) + 1, len(content)) if asked[2] else len(content)
            if start >= len(content):
                return self._json({}, status=416, headers={"Content-Range": f"bytes */{len(content)}"})
        self.send_response(206 if asked and not hub.without_ranges else 200)
        if asked and not hub.without_ranges:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        for key, value in {**headers, "Content-Length": str(end - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        if hub.damaged[path]:
            hub.damaged[path] -= 1
            content = content[:-1] + bytes([content[-1] ^ 1])
        served = Served(path, start, authorization=self.headers["Authorization"], host=self.headers["Host"])
        hub.served.append(served)
        return self._send(served, content[start:end])

    def _send(self, served, content):
        hub = self.server_hub
        cuts = hub.cut_after.get(served.path)
        limit = cuts.pop(0) if cuts else None
        for place in range(0, len(content), _PIECE_BYTES):
            piece = content[place : place + _PIECE_BYTES]
            if limit is not None and served.sent + len(piece) > limit:
                self.wfile.write(piece[: limit - served.sent])
                served.sent = limit
                self.close_connection = True
                self.wfile.flush()
                return
            self.wfile.write(piece)
            served.sent += len(piece)
            if hub.bytes_per_s:
                time.sleep(len(piece) / hub.bytes_per_s)


@contextlib.contextmanager
def only_hub(folder, patch):
    """A local server as the only hub of both kinds, with caches of its own below `folder` and no token.

    It has one model, org/tiny.
    """
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE")
    for name in names:
        patch.delenv(name, raising=False)
    with hub_server() as server:
        patch.setenv("HF_ENDPOINT", server.address)
        patch.setenv("MODELSCOPE_ENDPOINT", server.address)
        patch.setenv("HF_HOME", str(folder / "huggingface"))
        patch.setenv("MODELSCOPE_CACHE", str(folder / "modelscope"))
        patch.setenv("MODELSCOPE_HOME", str(folder / "modelscope-login"))
        server.models["org/tiny"] = Model(dict(TINY))
        yield server
