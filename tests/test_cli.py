"""`python -m core` as a user types it: figures, exit codes, one clear line when it can't."""

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
from waiting import until

from core import sampling
from core.cli.app import app
from core.engine_settings import BY_NAME

ROOT = Path(__file__).parents[1]


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def core(home):
    """Run `python -m core ARGS`; gives the finished process."""

    def run(*args, **environment):
        return subprocess.run(
            [sys.executable, "-m", "core", *map(str, args)],
            cwd=ROOT,
            env={**os.environ, "WORKBENCH_HOME": str(home), **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("id,text\n007,good film\n008,bad film\n009,\n", encoding="utf-8")
    return path


def figures(process):
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_batch_answers_every_row_and_prints_its_figures(core, home, table, tmp_path):
    out = tmp_path / "out.csv"
    process = core(
        "batch", table, "-o", out, "--prompt-column", "text", "--engine", "scripted",
        "--param", "temperature=0", "--param", "max_tokens=32", "--param", "ignore_eos=true", "--json",
    )  # fmt: skip
    summary = figures(process)
    assert len(process.stdout.splitlines()) == 1
    assert (summary["rows"], summary["ok"], summary["errors"], summary["skipped"]) == (3, 2, 0, 1)
    assert summary["generated"] == 2
    assert summary["output_tokens"] == 64
    assert summary["prompt_tokens"] > 0
    assert summary["output_tokens_per_s"] == pytest.approx(64 / summary["wall_s"], rel=0.05)
    assert (
        json.loads((home / "runs" / summary["run_id"] / "run.json").read_text())["run_id"]
        == summary["run_id"]
    )
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["007", "008", "009"]
    assert [row["answer_status"] for row in rows] == ["ok", "ok", "skipped"]
    assert rows[0]["answer_finish_reason"] == "length"
    assert rows[0]["answer_output_tokens"] == "32"


def test_limit_and_answer_column_and_parquet(core, table, tmp_path):
    out = tmp_path / "out.parquet"
    summary = figures(
        core("batch", table, "-o", out, "--template", "Is it good? {{ text }}", "--engine", "scripted",
             "--limit", 1, "--answer-column", "label", "--json")
    )  # fmt: skip
    assert summary["rows"] == 1
    written = pq.read_table(out)
    assert written.num_rows == 1
    assert written.column_names == [
        "id", "text", "label", "label_status", "label_error",
        "label_finish_reason", "label_prompt_tokens", "label_output_tokens",
    ]  # fmt: skip


def test_seed_changes_the_answer_and_repeats_it(core, table, tmp_path):
    answers = []
    for seed in (1, 1, 2):
        out = tmp_path / "out.jsonl"
        figures(core("batch", table, "-o", out, "--prompt-column", "text", "--engine", "scripted",
                     "--seed", seed, "--json"))  # fmt: skip
        answers.append([json.loads(line)["answer"] for line in out.read_text(encoding="utf-8").splitlines()])
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--template", "{{ nothing }}"], "Columns: id, text"),
        (["--prompt-column", "nothing"], "Columns: id, text"),
        (["--template", "{{ text", ], "template can't be read"),
        (["--prompt-column", "text", "--answer-column", "id"], "already has a column 'id'"),
        (["--prompt-column", "text", "--encoding", "utf-16"], "in.csv"),
        (["--prompt-column", "text", "--engine", "vllm", "--model", "/no/such/model"], "/no/such/model"),
    ],
)  # fmt: skip
def test_what_can_not_work_ends_with_one_line_and_code_1(core, table, tmp_path, args, says):
    out = tmp_path / "out.csv"
    engine = [] if "--engine" in args else ["--engine", "scripted"]
    process = core("batch", table, "-o", out, *args, *engine)
    assert process.returncode == 1
    assert says in process.stderr.splitlines()[-1]
    assert process.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in process.stderr
    assert process.stdout == ""
    assert not out.exists()


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n\x00\x00", b"a,b\n"])
def test_a_file_that_is_no_table_is_said_so(core, tmp_path, content):
    path = tmp_path / "broken.csv"
    path.write_bytes(content)
    process = core("batch", path, "-o", tmp_path / "out.csv", "--prompt-column", "a", "--engine", "scripted")
    assert process.returncode == 1
    assert "broken.csv" in process.stderr.splitlines()[-1]
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--template", "x", "--prompt-column", "text"],
        ["--prompt-column", "text", "--param", "temprature=0"],
        ["--prompt-column", "text", "--param", "temperature=hot"],
        ["--prompt-column", "text", "--param", "top_p=2"],
        ["--prompt-column", "text", "--engine", "steam"],
        ["--prompt-column", "text", "--limit", "0"],
        ["--prompt-column", "text", "--seed", "1", "--param", "seed=2"],
    ],
)
def test_wrong_usage_is_code_2(core, table, tmp_path, args):
    process = core("batch", table, "-o", tmp_path / "out.csv", *args)
    assert process.returncode == 2
    assert "Traceback" not in process.stderr


def test_wrong_usage_without_or_with_an_odd_output(core, table, tmp_path):
    assert core("batch", table, "--prompt-column", "text").returncode == 2
    assert core("batch", table, "-o", tmp_path / "out.docx", "--prompt-column", "text").returncode == 2


def test_a_near_miss_of_a_parameter_gets_a_suggestion(core, table, tmp_path):
    process = core(
        "batch", table, "-o", tmp_path / "o.csv", "--prompt-column", "text", "--param", "temprature=0"
    )
    assert "Did you mean temperature?" in process.stderr


def start_slow_run(home, table, out, *, extra=()):
    """A run of 30 words a second a row on the scripted engine, two rows at a time; gives the process."""
    environment = {
        **os.environ,
        "WORKBENCH_HOME": str(home),
        "WORKBENCH_SCRIPTED_TOKENS_PER_S": "60",
        "WORKBENCH_MAX_NUM_SEQS": "4",
    }
    command = [sys.executable, "-m", "core", "batch", str(table), "-o", str(out), "--prompt-column", "text"]
    return subprocess.Popen(
        [*command, "--engine", "scripted", "--json", *extra],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def long_table(tmp_path, rows=200):
    path = tmp_path / "long.csv"
    path.write_text("id,text\n" + "".join(f"{n},row number {n}\n" for n in range(rows)), encoding="utf-8")
    return path


def done_rows(home):
    """Rows that the catalogue says are done, of the only run there is."""
    import sqlite3

    path = home / "workbench.sqlite"
    if not path.exists():
        return 0
    connection = sqlite3.connect(path)
    try:
        found = connection.execute("SELECT run_id, ok + errors + skipped FROM runs").fetchone()
    except sqlite3.OperationalError:
        return 0  # the table is being made
    finally:
        connection.close()
    return found[1] if found else 0


def wait_for_rows(home, process, rows):
    deadline = time.monotonic() + 60
    while done_rows(home) < rows:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def the_run_id(home):
    (folder,) = (home / "runs").iterdir()
    return folder.name


def test_kill_9_twice_and_resume_gives_every_row_exactly_once(core, home, tmp_path):
    table, out = long_table(tmp_path), tmp_path / "out.csv"
    process = start_slow_run(home, table, out)
    wait_for_rows(home, process, 10)
    process.kill()
    process.communicate(timeout=20)
    run_id = the_run_id(home)
    assert not out.exists()
    kept = [json.loads(line) for line in core("runs", "--json").stdout.splitlines()]
    assert kept[0]["state"] == "interrupted"
    assert 10 <= kept[0]["done"] < 200

    again = subprocess.Popen(
        [sys.executable, "-m", "core", "batch", "--resume", run_id, "-o", str(out)],
        cwd=ROOT,
        env={**os.environ, "WORKBENCH_HOME": str(home), "WORKBENCH_SCRIPTED_TOKENS_PER_S": "60"},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_rows(home, again, kept[0]["done"] + 10)
    again.kill()
    again.communicate(timeout=20)

    before = done_rows(home)
    summary = figures(core("batch", "--resume", run_id, "-o", out, "--json"))
    assert (summary["rows"], summary["ok"]) == (200, 200)
    # what was answered within the last flush before the kill is done again, nothing else
    assert 0 < summary["generated"] <= 200 - before
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [str(number) for number in range(200)]
    assert {row["answer_status"] for row in rows} == {"ok"}
    whole = tmp_path / "whole.csv"
    figures(core("batch", table, "-o", whole, "--prompt-column", "text", "--engine", "scripted", "--json"))
    assert out.read_text(encoding="utf-8") == whole.read_text(encoding="utf-8")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_says_how_to_go_on_and_that_works(core, home, tmp_path, how):
    table, out = long_table(tmp_path), tmp_path / "out.csv"
    process = start_slow_run(home, table, out)
    wait_for_rows(home, process, 5)
    process.send_signal(how)
    _stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"--resume {the_run_id(home)}" in stderr
    assert "Traceback" not in stderr
    assert figures(core("batch", "--resume", the_run_id(home), "-o", out, "--json"))["ok"] == 200


def test_a_full_disk_pauses_the_run_with_its_reason_and_room_lets_it_go_on(home, tmp_path):
    table, out = long_table(tmp_path, rows=2000), tmp_path / "out.csv"
    command = [sys.executable, "-m", "core", "batch", str(table), "-o", str(out), "--prompt-column", "text",
               "--engine", "scripted", "--param", "max_tokens=400", "--param", "ignore_eos=true",
               "--json"]  # fmt: skip
    said = tmp_path / "stderr.txt"
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    with said.open("w") as stderr:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "WORKBENCH_HOME": str(home)},
            # no file may grow beyond 3 MB: what a full disk does, without filling one
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, resource.RLIM_INFINITY)),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        until(lambda: "is full" in said.read_text(), timeout_s=90)
        assert process.poll() is None
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, unlimited)
        stdout, _ = process.communicate(timeout=90)
    finally:
        process.kill()
    summary = json.loads(stdout.splitlines()[-1])
    assert (summary["rows"], summary["ok"], summary["errors"]) == (2000, 2000, 0)
    assert "Traceback" not in said.read_text()
    with out.open(newline="", encoding="utf-8") as file:
        assert all(row["answer"].strip() for row in csv.DictReader(file))


def test_a_finished_run_is_written_again_without_generating(core, table, tmp_path):
    first = tmp_path / "first.csv"
    summary = figures(
        core("batch", table, "-o", first, "--prompt-column", "text", "--engine", "scripted", "--json")
    )
    second = tmp_path / "second.csv"
    again = figures(core("batch", "--resume", summary["run_id"], "-o", second, "--json"))
    assert again["generated"] == 0
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    "option",
    [
        ["--param", "temperature=0"],
        ["--system", "x"],
        ["--answer-column", "b"],
        ["--no-reorder"],
        ["--samples", "rows"],
        ["--tolerance", "1"],
        ["--examples-count", "2"],
    ],
)
def test_an_option_that_a_resume_can_not_take_is_refused_not_dropped(core, tmp_path, option):
    process = core("batch", "--resume", "20200101-000000-abcdef", "-o", tmp_path / "out.csv", *option)
    assert process.returncode == 2
    assert option[0].removeprefix("--").removeprefix("no-") in process.stderr


def test_an_unknown_run_is_code_1(core, tmp_path):
    process = core("batch", "--resume", "20200101-000000-abcdef", "-o", tmp_path / "out.csv")
    assert process.returncode == 1
    assert "no run" in process.stderr


def test_a_run_at_work_elsewhere_is_not_taken(core, home, tmp_path):
    table, out = long_table(tmp_path, rows=5000), tmp_path / "out.csv"
    process = start_slow_run(home, table, out)
    try:
        wait_for_rows(home, process, 5)
        other = core("batch", "--resume", the_run_id(home), "-o", tmp_path / "other.csv")
        assert other.returncode == 1
        assert "another process" in other.stderr or f"process {process.pid}" in other.stderr
    finally:
        process.kill()
        process.communicate(timeout=20)


def every_command(command, *path):
    """(its words, itself) of a command and all that are below it."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from every_command(below, *path, name)


def test_every_command_and_option_has_help(core):
    assert "batch" in core("--help").stdout
    commands = dict(every_command(typer.main.get_command(app)))
    assert len(commands) > 40
    for path, command in commands.items():
        assert command.help, path
        for option in command.params:
            assert option.help, (path, option.name)
    offered = {name for option in commands["batch",].params for name in option.opts}
    for option in ("--template", "--prompt-column", "--system", "--param", "--seed", "--limit", "--model",
                   "--engine", "--answer-column", "--json", "--resume", "--output"):  # fmt: skip
        assert option in offered


def test_params_lists_the_whole_table(core):
    listed = core("params").stdout
    for parameter in sampling.PARAMETERS:
        assert parameter.name in listed
        assert parameter.help in listed


def test_engine_settings_are_taken_kept_for_the_run_and_checked_first(core, home, table, tmp_path):
    out = tmp_path / "out.csv"
    command = ["batch", table, "-o", out, "--prompt-column", "text", "--engine", "scripted", "--json"]
    summary = figures(core(*command, "--engine-arg", "max_model_len=64", "--engine-arg", "max-num-seqs=2"))
    spec = json.loads((home / "runs" / summary["run_id"] / "run.json").read_text())
    assert (spec["model"]["max_model_len"], spec["engine"]["max_num_seqs"]) == (64, 2)
    for assignment, words in (
        ("max_modell_len=64", "Did you mean max_model_len"),
        ("tensor_parallel_size=2", "setting of vllm"),
    ):
        process = core(*command, "--engine-arg", assignment)
        assert process.returncode == 2 and words in process.stderr
    assert len(list((home / "runs").iterdir())) == 1


def test_params_lists_the_engine_settings_too(core):
    listed = core("params", "--engine").stdout
    assert all(name in listed for name in BY_NAME)


def test_bad_settings_are_named(core, table, tmp_path):
    process = core("runs", WORKBENCH_MAX_NUM_SEQS="many")
    assert process.returncode == 1
    assert "WORKBENCH_MAX_NUM_SEQS" in process.stderr


def test_import_core_is_instant_and_loads_nothing_heavy():
    heavy = "vllm torch transformers streamlit duckdb pandas sqlalchemy modelscope"
    code = f"import sys, core; print([m for m in {heavy.split()!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
