"""Settings come from the environment; a value that makes no sense is named."""

from pathlib import Path

import pytest

from core.errors import SettingsError
from core.settings import Settings, load_settings

DOCS = Path(__file__).parents[1] / "docs" / "settings.md"


def test_the_workspace_is_made_where_it_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "deep" / "home"))
    settings = load_settings()
    assert settings.home == tmp_path / "deep" / "home"
    assert settings.runs_dir.is_dir()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_NUM_SEQS", "0"),
        ("GPU_MEMORY_UTILIZATION", "1.5"),
        ("AUTOLOAD", "perhaps"),
        ("MAX_MODEL_LEN", "long"),
        ("API_ALLOWED_ORIGINS", "https://app.example.org/chat"),
        ("API_ALLOWED_ORIGINS", "app.example.org"),
        ("API_ALLOWED_ORIGINS", "*"),
    ],
)
def test_a_bad_value_is_named(monkeypatch, tmp_path, name, value):
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    monkeypatch.setenv(f"WORKBENCH_{name}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert f"WORKBENCH_{name}" in str(caught.value)


def test_a_workspace_that_can_not_be_made_is_said_so(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(SettingsError, match="can't be written"):
        load_settings()


def test_an_empty_variable_is_as_good_as_none(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    monkeypatch.setenv("WORKBENCH_TABLES_DIR", "")
    assert load_settings().tables_dir is None


def test_the_folder_of_tables_may_be_given_from_the_home_folder_or_the_current_one(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("WORKBENCH_TABLES_DIR", "~/tables")
    assert load_settings().tables_dir == tmp_path / "me" / "tables"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKBENCH_TABLES_DIR", "tables")
    assert load_settings().tables_dir == tmp_path / "tables"


def test_every_setting_is_documented():
    page = DOCS.read_text(encoding="utf-8")
    for name in Settings.model_fields:
        assert f"`WORKBENCH_{name.upper()}`" in page
