"""The API under https: an own certificate, and words for one that can't serve."""

import datetime as dt
import os
import re
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from api_serving import serving
from apps import opened, until
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from core.api.server import ApiServer
from core.store import Store
from pages.parts import session

ROOT = Path(__file__).parents[1]
SHORT = {"prompt": "Hi", "max_tokens": 3}


def make_certificate(
    folder: Path, name: str = "localhost", password: bytes | None = None
) -> tuple[Path, Path]:
    """A certificate for `name`, signed by itself, and its key."""
    folder.mkdir(exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    files = folder / "cert.pem", folder / "key.pem"
    files[0].write_bytes(made.public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    return files


def test_it_answers_under_https_and_nothing_else(runtime, tmp_path):
    certificate, key = make_certificate(tmp_path / "tls")
    settings = {"api_ssl_certfile": certificate, "api_ssl_keyfile": key, "api_allowed_hosts": "localhost"}
    store = Store(runtime.settings.catalogue_path)
    server = ApiServer(runtime, store, runtime.settings.model_copy(update=settings))
    server.start(port=0)
    status = server.wait(20)
    try:
        assert status.is_encrypted and re.fullmatch(r"https://localhost:\d+", status.url), status
        trusting = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=status.url, verify=trusting) as client:
            answer = client.post("/generate", json=SHORT)
            assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] > 0
            with client.stream("POST", "/generate", json={**SHORT, "stream": True}) as streamed:
                assert list(streamed.iter_lines())[-2] == "data: [DONE]"
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            httpx.get(f"{status.url}/health")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://localhost:{status.port}/health")
        assert server.status().phase == "serving"
    finally:
        server.close()
        store.close()


def test_key_and_certificate_may_be_one_file(runtime, tmp_path):
    certificate, key = make_certificate(tmp_path / "tls")
    both = tmp_path / "both.pem"
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    with serving(runtime, api_ssl_certfile=both) as (server, _client):
        assert server.status().url.startswith("https://127.0.0.1:")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("missing", r"none\.pem is no file"),
        ("key alone", "a key for https, and no certificate"),
        ("encrypted", r"The key in .*key\.pem is encrypted"),
        ("of another", r"can't serve https with .*cert\.pem and .*key\.pem"),
        ("no certificate", r"can't serve https with .*key\.pem"),
    ],
)
def test_what_can_not_serve_is_said(runtime, tmp_path, what, words):
    certificate, key = make_certificate(tmp_path / "tls", password=b"secret" if what == "encrypted" else None)
    _other, other_key = make_certificate(tmp_path / "other")
    named = {
        "missing": (tmp_path / "none.pem", key),
        "key alone": (None, key),
        "encrypted": (certificate, key),
        "of another": (certificate, other_key),
        "no certificate": (key, None),
    }[what]
    store = Store(runtime.settings.catalogue_path)
    values = dict(zip(("api_ssl_certfile", "api_ssl_keyfile"), named, strict=True))
    server = ApiServer(runtime, store, runtime.settings.model_copy(update=values))
    try:
        server.start(port=0)
        status = server.wait(20)
        assert status.phase == "failed" and status.url is None
        assert re.search(words, status.error), status.error
    finally:
        server.close()
        store.close()


def test_core_serve_prints_https(tmp_path):
    certificate, key = make_certificate(tmp_path / "tls")
    environment = {
        **os.environ,
        "WORKBENCH_HOME": str(tmp_path / "home"),
        "WORKBENCH_API_SSL_CERTFILE": str(certificate),
        "WORKBENCH_API_SSL_KEYFILE": str(key),
    }
    command = [sys.executable, "-m", "core", "serve", "--engine", "scripted", "--port", "0"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        first = process.stdout.readline()
        assert re.search(r"answers at https://127\.0\.0\.1:\d+$", first), first
        assert "curl 'https://127.0.0.1:" in process.stdout.readline()
    finally:
        process.send_signal(signal.SIGINT)
        _out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


def test_the_page_shows_https_and_programs_that_ask_so(workspace, monkeypatch, tmp_path):
    certificate, key = make_certificate(tmp_path / "tls")
    monkeypatch.setenv("WORKBENCH_API_SSL_CERTFILE", str(certificate))
    monkeypatch.setenv("WORKBENCH_API_SSL_KEYFILE", str(key))
    monkeypatch.setenv("WORKBENCH_API_PORT", "0")
    monkeypatch.setenv("WORKBENCH_API_REQUIRE_KEY", "true")
    app = opened("api")
    next(one for one in app.button if one.key == "api:start").click().run()
    until(app, lambda: session.api().status().phase == "serving" and session.api().status().models)
    url = session.api().status().url
    assert url.startswith("https://")
    codes = [one.value for one in app.code]
    assert f"{url}/v1" in codes
    assert any(f"curl '{url}/v1/chat/completions'" in code for code in codes)
    words = "\n".join(one.value for one in app.markdown)
    assert "What goes over the network is encrypted" in words and "http://" not in words


def test_the_page_says_why_https_can_not_be_served(workspace, monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_API_SSL_CERTFILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("WORKBENCH_API_PORT", "0")
    app = opened("api")
    next(one for one in app.button if one.key == "api:start").click().run()
    until(app, lambda: session.api().status().phase == "failed")
    assert "is no file" in app.error[0].value
