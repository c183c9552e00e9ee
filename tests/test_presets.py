"""Presets: kept under a name, in Python and on the command line."""

import csv
import json

import pytest
from typer.testing import CliRunner

from core import sampling
from core.cli.app import app
from core.errors import ParameterError
from core.presets import MAX_NAME_CHARACTERS, Presets
from core.store import Store


@pytest.fixture
def presets(store):
    return Presets(store)


@pytest.fixture
def command(settings):
    """Run `python -m core ARGS` in this process; gives stdout. Raises what the command raises."""

    def run(*args):
        result = CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


def names(presets):
    return [preset.name for preset in presets.list()]


def test_a_preset_is_what_was_saved_also_after_a_restart(presets, settings):
    params = {
        "temperature": 0.2,
        "stop": ["\n", "终"],
        "logit_bias": {12: -100.0},
        "structured_outputs": {"choice": ["a"]},
    }
    presets.save(" Strict ", params, "for labels ")
    again = Store(settings.catalogue_path)
    found = Presets(again).find("Strict")
    again.close()
    assert (found.name, found.params, found.about) == ("Strict", params, "for labels")


def test_saving_again_replaces(presets):
    presets.save("a", {"temperature": 0.1}, "old")
    before = presets.find("a").updated_at
    presets.save("a", {"top_p": 0.5})
    assert presets.find("a").params == {"top_p": 0.5} and presets.find("a").about == ""
    assert presets.find("a").updated_at > before and names(presets) == ["a"]


def test_they_are_listed_by_name(presets):
    for name in ("b", "C", "a", "文"):
        presets.save(name, {"top_k": 5})
    assert names(presets) == ["a", "b", "C", "文"]


def test_rename_and_delete(presets):
    presets.save("a", {"top_k": 5}, "kept")
    presets.save("b", {"top_k": 6})
    with pytest.raises(ParameterError, match="'b' already"):
        presets.rename("a", "b")
    presets.rename("a", "c")
    assert presets.find("c").about == "kept" and names(presets) == ["b", "c"]
    presets.rename("c", "c")
    presets.delete("b")
    assert names(presets) == ["c"]


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * (MAX_NAME_CHARACTERS + 1)])
def test_a_name_that_can_not_be_used_is_refused(presets, name):
    with pytest.raises(ParameterError, match="can't be named"):
        presets.save(name, {"top_k": 5})
    presets.save("a", {"top_k": 5})
    with pytest.raises(ParameterError, match="can't be named"):
        presets.rename("a", name)


def test_what_is_not_there_or_not_valid_is_explained(presets):
    with pytest.raises(ParameterError, match="None is saved yet"):
        presets.find("strict")
    presets.save("Strict", {"top_k": 5})
    for act in (presets.find, presets.delete, lambda name: presets.rename(name, "x")):
        with pytest.raises(ParameterError, match="Did you mean 'Strict'"):
            act("Strickt")
    with pytest.raises(ParameterError, match="out of range"):
        presets.save("Strict", {"top_p": 2})
    assert presets.find("Strict").params == {"top_k": 5}


def test_the_command_line_saves_lists_shows_renames_and_deletes(command):
    command(
        "presets", "save", "Strict", "--param", "temperature=0", "--param", "stop=a b", "--about", "labels"
    )
    assert command("presets", "list") == 'Strict  temperature=0.0 stop=["a b"]  labels\n'
    assert json.loads(command("presets", "list", "--json")) == {
        "name": "Strict", "params": {"temperature": 0.0, "stop": ["a b"]}, "about": "labels",
    }  # fmt: skip
    shown = command("presets", "show", "Strict").splitlines()
    assert sampling.parse_assignments(shown) == {"temperature": 0.0, "stop": ["a b"]}
    command("presets", "rename", "Strict", "Labels")
    command("presets", "delete", "Labels")
    assert command("presets", "list") == ""
    with pytest.raises(ParameterError, match="needs parameters"):
        command("presets", "save", "x")


def test_a_batch_takes_a_preset_and_its_own_parameters_go_before(command, tmp_path):
    table, out = tmp_path / "in.csv", tmp_path / "out.csv"
    table.write_text("text\ngood\n", encoding="utf-8")
    command(
        "presets",
        "save",
        "Short",
        "--param",
        "max_tokens=3",
        "--param",
        "ignore_eos=true",
        "--param",
        "seed=5",
    )

    def tokens(*args):
        asked = ("batch", table, "-o", out, "--prompt-column", "text", "--engine", "scripted", "--json")
        run = json.loads(command(*asked, *args).splitlines()[-1])
        with out.open(newline="", encoding="utf-8") as file:
            (row,) = csv.DictReader(file)
        return run["output_tokens"], row["answer_finish_reason"]

    assert tokens("--preset", "Short") == (3, "length")
    assert tokens("--preset", "Short", "--param", "max_tokens=7", "--seed", "6") == (7, "length")
    with pytest.raises(ParameterError, match="no preset 'Shorter'"):
        tokens("--preset", "Shorter")
