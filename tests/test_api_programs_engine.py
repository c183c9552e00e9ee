"""The programs of the API page, run as they stand against the API on the real engine."""

import os
import shutil
import subprocess
import sys

import pytest
from waiting import until

from core.api.examples import TASKS, examples
from core.api.server import ApiServer
from core.store import Store

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def asked(engine_runtime, tmp_path_factory):
    """(url, model, environment with a key) of an API that asks for one."""
    settings = engine_runtime.settings.model_copy(
        update={"home": tmp_path_factory.mktemp("api-programs"), "api_require_key": True}
    )
    settings.runs_dir.mkdir()
    settings.uploads_dir.mkdir()
    store = Store(settings.catalogue_path)
    api = ApiServer(engine_runtime, store, settings)
    _key, secret = api.keys.create("programs")
    api.start("127.0.0.1", 0)
    status = until(lambda: api.status() if api.status().models else None)
    yield status.url, status.models[0], {**os.environ, "OPENAI_API_KEY": secret}
    api.close()
    store.close()


def programs():
    for task in TASKS:
        for language in examples(task, "http://x", "m", needs_key=True):
            yield pytest.param(task, language, id=f"{task}-{language}")


@pytest.mark.parametrize(("task", "language"), list(programs()))
def test_a_program_prints_an_answer(asked, task, language, tmp_path):
    url, model, environment = asked
    program = examples(task, url, model, needs_key=True)[language]
    if language == "curl":
        command = ["sh", "-c", program]
    elif language == "Python":
        command = [sys.executable, "-c", program]
    else:
        (tmp_path / "ask.mjs").write_text(program)
        command = [shutil.which("node") or pytest.skip("Node is not installed here"), tmp_path / "ask.mjs"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip()) > 20
    assert '"error"' not in done.stdout
    if task == "batch":
        assert done.stdout.startswith("completed") and "question-2" in done.stdout
