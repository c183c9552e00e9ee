"""The programs that the API page offers: whole, of their language, without a key in them."""

import ast
import json
import shlex
import shutil
import subprocess

import pytest

from core.api.examples import TASKS, examples

MODEL = 'org/it\'s "odd" $HOME `x`'
URL = "http://127.0.0.1:8123"
ALL = [
    pytest.param(language, program, needs_key, id=f"{task}-{language}-{'key' if needs_key else 'open'}")
    for task in TASKS
    for needs_key in (False, True)
    for language, program in examples(task, URL, MODEL, needs_key=needs_key).items()
]


@pytest.mark.parametrize(("language", "program", "needs_key"), ALL)
def test_each_is_a_program_of_its_language(language, program, needs_key, tmp_path):
    if language == "Python":
        ast.parse(program)
    elif language == "curl":
        subprocess.run(["sh", "-n"], input=program, text=True, check=True)
        json.loads(shlex.split(program)[-1])
    else:
        path = tmp_path / "ask.mjs"
        path.write_text(program)
        subprocess.run([node(), "--check", path], check=True)


@pytest.mark.parametrize(("language", "program", "needs_key"), ALL)
def test_a_key_comes_from_the_environment_and_only_where_one_is_needed(language, program, needs_key):
    if language == "Python" and "OpenAI(" in program:  # whose client looks there by itself
        assert ("api_key" not in program) == needs_key
    else:
        assert ("OPENAI_API_KEY" in program) == needs_key


def test_a_models_name_arrives_as_it_is():
    programs = examples("chat", URL, MODEL, needs_key=False)
    assert json.loads(shlex.split(programs["curl"])[-1])["model"] == MODEL
    calls = [node for node in ast.walk(ast.parse(programs["Python"])) if isinstance(node, ast.keyword)]
    assert MODEL in [call.value.value for call in calls if call.arg == "model"]


def node():
    return shutil.which("node") or pytest.skip("Node is not installed here")
