"""`python -m core compare` as a user types it: files, figures, exit codes, one clear line when it can't."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from core.cli import app as cli

ROOT = Path(__file__).parents[1]


@pytest.fixture
def compare(tmp_path):
    """Run `python -m core compare ARGS` with the scripted engine; gives the finished process."""

    def run(*args, **environment):
        return subprocess.run(
            command(*args), cwd=ROOT, env=env(tmp_path, **environment), capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """The same in this process, for what ends at once; gives exit code, stdout and stderr."""
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    before = signal.getsignal(signal.SIGTERM)

    def run(*args):
        monkeypatch.setattr(sys, "argv", command(*args)[2:])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    yield run
    signal.signal(signal.SIGTERM, before)


def command(*args):
    return [sys.executable, "-m", "core", "compare", *map(str, args), "--engine", "scripted"]


def env(tmp_path, **environment):
    return {**os.environ, "WORKBENCH_HOME": str(tmp_path / "home"), **environment}


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "in.csv"
    lines = [f"film {n} is {'good' if n % 2 else 'bad'},{'pos' if n % 2 else 'neg'}" for n in range(30)]
    path.write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    return path


def figures(process):
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def lines_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))


def test_rows_of_a_table_under_sets_and_a_grid(compare, table, tmp_path):
    out = tmp_path / "out.csv"
    process = compare(
        table, "--template", "Good? {{ text }}", "--reference", "label", "--rows", 7, "--seeds", "1,2",
        "--param", "max_tokens=9", "--set", "brief: temperature=0, max_tokens=2, system='Be brief.'",
        "--grid", "temperature=0.3,1", "--grid", "top_p=0.8,1", "--baseline", "temperature 1, top_p 1",
        "-o", out, "--json",
    )  # fmt: skip
    summary = figures(process)
    assert len(process.stdout.splitlines()) == 1
    assert (summary["answers"], summary["complete"]) == (70, 70)
    lines = lines_of(out)
    assert len(lines) == 70 and {line["prompt"] for line in lines} == set("1234567")
    brief = [line for line in lines if line["set"] == "brief"]
    assert {line["output_tokens"] for line in brief} == {"2"} and {line["system"] for line in brief} == {
        "Be brief."
    }
    assert {line["reference"] for line in lines} == {"pos", "neg"} and lines[0]["question"].startswith(
        "Good? film"
    )
    shorter = next(
        one for one in summary["differences"] if one["set"] == "brief" and one["metric"] == "output_tokens"
    )
    assert shorter["verdict"] == "lower" and shorter["n"] == 7 and shorter["high"] < 0
    assert "Tokens: brief against temperature 1, top_p 1: −" in process.stderr
    assert "no difference shown" in process.stderr


def test_a_result_is_a_specification_to_repeat(compare, tmp_path):
    first, again, page = tmp_path / "first.json", tmp_path / "again.json", tmp_path / "page.html"
    compare("--prompt", "Why?", "--prompt", "How?", "--set", "a: seed=3", "-o", first, "--name", "Mine")
    figures(compare(first, "-o", again, "--json"))
    one, two = (json.loads(path.read_text()) for path in (first, again))
    assert one["spec"] == two["spec"] and one["name"] == two["name"] == "Mine"
    assert [line["answer"] for line in one["answers"]] == [line["answer"] for line in two["answers"]]
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(one["spec"]), encoding="utf-8")
    figures(compare(spec, "-o", page, "--json"))
    assert "<title>Mine</title>" in page.read_text(encoding="utf-8")


def test_a_preset_is_a_set(compare, tmp_path):
    out = tmp_path / "out.json"
    subprocess.run(
        [sys.executable, "-m", "core", "presets", "save", "terse", "--param", "max_tokens=1"],
        cwd=ROOT, env=env(tmp_path), check=True, capture_output=True,
    )  # fmt: skip
    figures(compare("--prompt", "Why is it so?", "--preset", "terse", "-o", out, "--json"))
    (line,) = json.loads(out.read_text())["answers"]
    assert (line["set"], line["output_tokens"]) == ("terse", 1)


def test_the_loaded_model_judges_every_pair(compare, tmp_path):
    out = tmp_path / "out.json"
    process = compare(
        "--prompt", "Why?", "--prompt", "How?", "--set", "a: seed=1", "--set", "b: seed=2",
        "--judge", "engine", "-o", out, "--json",
    )  # fmt: skip
    assert figures(process)["votes"] == 2
    assert {vote["voter"] for vote in json.loads(out.read_text())["votes"]} == {"judge:scripted"}
    assert "votes: a against b" in process.stderr


def test_ctrl_c_stops_quietly_and_resume_does_the_rest(compare, tmp_path):
    out = tmp_path / "out.csv"
    with subprocess.Popen(
        command("--prompt", "Why?", "--set", "short: max_tokens=2",
                "--set", "long: ignore_eos=true max_tokens=900", "-o", out),
        cwd=ROOT, env=env(tmp_path, WORKBENCH_SCRIPTED_TOKENS_PER_S="60"), stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        said = process.stderr.readline()
        comparison_id = said.split()[1].rstrip(":")
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130 and "Traceback" not in rest
    assert f"compare --resume {comparison_id}" in rest and not out.exists()
    figures(compare("--resume", comparison_id, "-o", out, "--json"))
    assert [line["state"] for line in lines_of(out)] == ["complete"] * 2
    assert figures(compare("--resume", comparison_id, "-o", out, "--json"))["complete"] == 2


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--prompt", "x"], 2, "-o OUTPUT is missing"),
        (["--prompt", "x", "-o", "out.txt"], 2, "must end in one of .html, .csv, .json"),
        (["--prompt", "x", "-o", "/no/such/out.csv"], 2, "does not exist"),
        (["-o", "out.csv"], 2, "give one of SPEC.json, TABLE and --prompt"),
        (["in.csv", "-o", "out.csv"], 2, "table's columns: text, label"),
        (["in.csv", "--template", "{{ nothing }}", "-o", "out.csv"], 1, "Columns: text, label"),
        (["in.csv", "--template", "{{ text }}", "--reference", "x", "-o", "out.csv"], 1, "no column 'x'"),
        (["none.csv", "--template", "{{ text }}", "-o", "out.csv"], 1, "none.csv"),
        (["--prompt", "x", "--set", "temperature=0", "-o", "out.csv"], 2, "has no name"),
        (["--prompt", "x", "--set", "a: temprature=0", "-o", "out.csv"], 2, "Did you mean temperature"),
        (["--prompt", "x", "--set", "a: stop='", "-o", "out.csv"], 2, "Close the quotes"),
        (["--prompt", "x", "--grid", "temperature", "-o", "out.csv"], 2, "PARAM=A,B"),
        (["--prompt", "x", "--seeds", "1,x", "-o", "out.csv"], 2, "whole numbers"),
        (["--prompt", "x", "--baseline", "b", "-o", "out.csv"], 2, "There is no set 'b'"),
        (["--prompt", "x", "--judge", "ftp://x", "-o", "out.csv"], 2, "address"),
        (["--prompt", "x", "--judge", "http://x/v1", "-o", "out.csv"], 2, "no model name"),
        (["spec.json", "--seeds", "1", "-o", "out.csv"], 2, "says --seeds itself"),
        (["spec.json", "--grid", "seed=1", "-o", "out.csv"], 2, "says --grid itself"),
        (["--resume", "x", "--prompt", "y", "-o", "out.csv"], 2, "--prompt"),
        (["--resume", "nothing", "-o", "out.csv"], 1, "no comparison 'nothing'"),
        (["bad.json", "-o", "out.csv"], 2, "surplus"),
        (["--prompt", "word " * 9000, "-o", "out.csv"], 1, "too long"),
    ],
)
def test_what_can_not_work_ends_with_one_clear_line(here, table, tmp_path, args, code, says):
    (tmp_path / "spec.json").write_text('{"prompts": [{"messages": "x"}], "sets": [{"name": "a"}]}')
    (tmp_path / "bad.json").write_text(
        '{"prompts": [{"messages": "x"}], "sets": [{"name": "a"}], "surplus": 1}'
    )
    files = (".csv", ".json", ".txt")
    args = [str(tmp_path / arg) if arg.endswith(files) and "/" not in arg else arg for arg in args]
    status, out, error = here(*args)
    assert status == code, error
    assert says in " ".join(error.split()) and "Traceback" not in error
    assert out == "" and not (tmp_path / "out.csv").exists()
