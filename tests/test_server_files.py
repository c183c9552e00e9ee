"""Tables picked from a folder of the server: what is offered, and that nothing else can be had."""

import os
import time

import pytest

from core import server_files
from core.errors import TableError
from core.settings import Settings


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "tables"
    (folder / "2026" / "deep").mkdir(parents=True)
    (folder / "2026" / "sales.csv").write_text("a\n1\n")
    (folder / "Films.CSV").write_text("a\n1\n")
    (folder / "big.parquet").write_bytes(b"x" * 5000)
    (folder / "notes.txt").write_text("not a table")
    (folder / ".secret.csv").write_text("a\n1\n")
    (folder / "~$open.xlsx").write_bytes(b"lock")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "inner.csv").write_text("a\n1\n")
    (tmp_path / "outside.csv").write_text("private\n1\n")
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / "more.csv").write_text("private\n1\n")
    return folder


@pytest.fixture
def settings(tmp_path, folder):
    return Settings(home=tmp_path / "home", tables_dir=folder)


def names(entries):
    return [entry.name for entry in entries]


def test_folders_then_tables_are_listed_by_name(settings):
    entries = server_files.listing(settings)
    assert names(entries) == ["2026", "big.parquet", "Films.CSV"]
    assert [entry.is_folder for entry in entries] == [True, False, False]
    assert [entry.size_bytes for entry in entries] == [None, 5000, 4]
    assert all(abs(entry.modified.timestamp() - time.time()) < 3600 for entry in entries)
    assert names(server_files.listing(settings, "2026")) == ["deep", "sales.csv"]
    assert server_files.listing(settings, "2026/deep") == []


def test_a_listed_table_resolves_to_its_file(settings, folder):
    assert server_files.resolve(settings, "Films.CSV") == folder / "Films.CSV"
    assert server_files.resolve(settings, "2026/sales.csv") == folder / "2026" / "sales.csv"


@pytest.mark.parametrize(
    "relative",
    [
        "../outside.csv",
        "2026/../../outside.csv",
        "2026/../Films.CSV",
        "{root}/outside.csv",
        "{root}/tables/.secret.csv",
        "/etc/passwd",
        ".secret.csv",
        ".hidden/inner.csv",
        "~$open.xlsx",
        "notes.txt",
        "nothing.csv",
        "2026",
        "",
        ".",
        "sales.csv\0.csv",
        "a" * 5000 + ".csv",
        "Films.CSV/inner.csv",
    ],
)
def test_nothing_else_can_be_had(settings, tmp_path, relative):
    with pytest.raises(TableError) as caught:
        server_files.resolve(settings, relative.format(root=tmp_path))
    assert caught.value.hint


@pytest.mark.parametrize(
    "subfolder", ["..", "../outer", "{root}/outer", ".hidden", "Films.CSV", "nothing", "\0"]
)
def test_no_other_folder_can_be_listed(settings, tmp_path, subfolder):
    with pytest.raises(TableError):
        server_files.listing(settings, subfolder.format(root=tmp_path))


def test_links_that_lead_out_are_neither_shown_nor_followed(settings, folder, tmp_path):
    (folder / "out.csv").symlink_to(tmp_path / "outside.csv")
    (folder / "out").symlink_to(tmp_path / "outer")
    (folder / "2026" / "up.csv").symlink_to("../../outside.csv")
    (folder / "shown.csv").symlink_to(".secret.csv")
    (folder / "text.csv").symlink_to("notes.txt")
    (folder / "gone.csv").symlink_to("nowhere.csv")
    (folder / "circle.csv").symlink_to("circle.csv")
    assert names(server_files.listing(settings)) == ["2026", "big.parquet", "Films.CSV"]
    assert names(server_files.listing(settings, "2026")) == ["deep", "sales.csv"]
    links = ("out.csv", "out/more.csv", "2026/up.csv", "shown.csv", "text.csv", "gone.csv", "circle.csv")
    for relative in links:
        with pytest.raises(TableError):
            server_files.resolve(settings, relative)
    with pytest.raises(TableError):
        server_files.listing(settings, "out")


def test_links_within_the_folder_work(settings, folder):
    (folder / "newest.csv").symlink_to("2026/sales.csv")
    (folder / "this-year").symlink_to("2026")
    assert names(server_files.listing(settings)) == [
        "2026",
        "this-year",
        "big.parquet",
        "Films.CSV",
        "newest.csv",
    ]
    for relative in ("newest.csv", "this-year/sales.csv"):
        assert server_files.resolve(settings, relative) == folder / "2026" / "sales.csv"


def test_the_folder_itself_may_be_a_link(tmp_path, folder):
    (tmp_path / "link").symlink_to(folder)
    settings = Settings(home=tmp_path / "home", tables_dir=tmp_path / "link")
    assert server_files.resolve(settings, "2026/sales.csv").read_text() == "a\n1\n"


def test_a_pipe_that_is_named_like_a_table_is_not_opened(settings, folder):
    os.mkfifo(folder / "pipe.csv")
    assert "pipe.csv" not in names(server_files.listing(settings))
    with pytest.raises(TableError, match="not a file"):
        server_files.resolve(settings, "pipe.csv")


def test_a_name_that_is_no_text_is_left_out(settings, folder):
    (folder / os.fsdecode(b"caf\xe9.csv")).write_text("a\n1\n")
    assert names(server_files.listing(settings)) == ["2026", "big.parquet", "Films.CSV"]


def test_without_a_folder_or_with_one_that_is_gone_the_setting_is_named(tmp_path):
    for tables_dir in (None, tmp_path / "gone"):
        settings = Settings(home=tmp_path / "home", tables_dir=tables_dir)
        for ask in (server_files.listing, server_files.resolve):
            with pytest.raises(TableError) as caught:
                ask(settings, "x.csv")
            assert "WORKBENCH_TABLES_DIR" in caught.value.hint
