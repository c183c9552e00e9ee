"""Files in and out: every value comes back, every row is accounted for, every refusal names its cause."""

from __future__ import annotations

import csv
import datetime
import io
import json
from pathlib import Path

import duckdb
import hypothesis.strategies as st
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import xlsxwriter
from hypothesis import given, settings

from core import tables
from core.errors import TableError
from core.tables import Column, ReadOptions

CHINESE = (
    "产品,评价\n手机,屏幕很好，电池也耐用，就是有点重。\n耳机,声音不错但是戴久了耳朵会疼\n"
    "电脑,买来一个星期就坏了，客服的态度倒是很好\n"
)


@pytest.fixture
def con():
    with duckdb.connect(":memory:") as connection:
        yield connection


@pytest.fixture
def put(tmp_path):
    def write_file(content: str | bytes, name: str = "table.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def staged(con, path, **options):
    """Info, the cells of every row, and every row's (line, problem, raw, cells)."""
    found = tables.stage(path, con, options=ReadOptions(**options))
    names = ", ".join(f"c{n}" for n in range(len(found.columns)))
    cells = con.execute(f"SELECT {names} FROM input ORDER BY _row").fetchall()
    meta = con.execute("SELECT _line, _problem, _raw, _cells FROM input ORDER BY _row").fetchall()
    assert con.execute("SELECT list(_row ORDER BY _row) FROM input").fetchall() == [
        (list(range(found.rows)),)
    ]
    return found, cells, meta


def exported(con, found, path, **options):
    names = ", ".join(f"c{n}" for n in range(len(found.columns)))
    reader = con.sql(f"SELECT {names} FROM input ORDER BY _row").to_arrow_reader(3)
    return tables.write(path, found.columns, reader, format=tables.export_format(path), **options)


def batch(*columns):
    return pyarrow.RecordBatch.from_arrays(
        [pyarrow.array(c) for c in columns], names=[f"c{n}" for n in range(len(columns))]
    )


# --- encodings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "found"),
    [
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf-8"),
        ("utf-16", "utf-16-le"),
        ("utf-16-le", "utf-16-le"),
        ("utf-16-be", "utf-16-be"),
        ("utf-32", "utf-32-le"),
        ("gbk", "gb18030"),
        ("gb18030", "gb18030"),
    ],
)
def test_chinese_table_reads_the_same_in_every_encoding(con, put, codec, found):
    info, cells, _ = staged(con, put(CHINESE.encode(codec)))
    assert info.encoding == found
    assert [column.name for column in info.columns] == ["产品", "评价"]
    assert cells == [tuple(row) for row in list(csv.reader(io.StringIO(CHINESE)))[1:]]
    assert (info.notes == ()) == (found == "utf-8")


def test_big_endian_mark(con, put):
    info, cells, _ = staged(con, put(b"\xfe\xff" + "a,b\n1,é\n".encode("utf-16-be")))
    assert (info.encoding, cells) == ("utf-16-be", [("1", "é")])


@pytest.mark.parametrize(
    "text", ["café naïve", "größe ändern", "Ça va être été à la crème brûlée", "señor niño"]
)
def test_latin_text_is_not_taken_for_chinese(con, put, text):
    info, cells, _ = staged(con, put(f"id,text\n1,{text}\n".encode("latin-1")))
    assert (info.encoding, cells) == ("cp1252", [("1", text)])


@pytest.mark.parametrize("text", ["张伟", "你好", "好", "北京大学", "这个电影很好看，我喜欢！"])
def test_short_chinese_gbk_is_not_taken_for_latin(con, put, text):
    info, cells, _ = staged(con, put(f"id,text\n1,{text}\n".encode("gbk")))
    assert (info.encoding, cells) == ("gb18030", [("1", text)])


@pytest.mark.parametrize(
    ("codec", "text"),
    [
        ("big5", "這個產品的品質很好，但是價格有點貴，希望下次可以便宜一點。我們全家都很喜歡這台電視機"),
        ("cp932", "この商品はとても良いですが、値段が少し高いです。次はもっと安くしてほしいです"),
        ("cp949", "이 제품은 정말 좋지만 가격이 조금 비쌉니다 다음에는 더 저렴했으면 좋겠습니다"),
    ],
)
def test_other_east_asian_encodings(con, put, codec, text):
    content = "id,text\n" + "".join(f"{n},{text}\n" for n in range(5))
    info, cells, _ = staged(con, put(content.encode(codec)))
    assert (info.encoding, cells[4]) == (codec, ("4", text))


def test_a_damaged_byte_far_into_a_utf8_file_marks_its_row_only(con, put):
    lines = ["id,text"] + [f"{n},好的 number {n}" for n in range(70_000)]
    content = "\n".join(lines).encode().split(b"\n")
    content[65_000] = b"64999,bad \xff byte"
    info, cells, meta = staged(con, put(b"\n".join(content)))
    assert (info.rows, info.problems, info.encoding) == (70_000, 1, "utf-8")
    assert cells[64_999] == ("64999", "bad \ufffd byte")
    assert meta[64_999] == (
        65_001,
        "line 65001: bytes that are not UTF-8 (0xff)",
        "64999,bad \ufffd byte",
        None,
    )


def test_forced_encoding_is_used_or_refused_with_line_and_byte(con, put):
    path = put("id,text\n1,café\n".encode("cp1252"))
    assert staged(con, path, encoding="latin-1")[1] == [("1", "café")]
    with pytest.raises(TableError, match=r"table.csv is not utf-8: line 2, byte 13 \(0xe9\)") as caught:
        staged(con, path, encoding="utf-8")
    assert caught.value.line == 2
    for name in ("no-such", "rot13", "base64"):
        with pytest.raises(TableError, match=name):
            staged(con, path, encoding=name)


# --- delimiters and quotes -------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters_are_detected_with_quotes_respected(con, put, delimiter):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    rows = [[str(n), "a,b;c|d\te", 'say "hi"\nthere', "1,5"] for n in range(30)]
    writer.writerows([["id", "text", "more", "price"], *rows])
    info, cells, meta = staged(con, put(out.getvalue()))
    assert (info.delimiter, info.problems) == (delimiter, 0)
    assert cells == [tuple(row) for row in rows]
    assert [line for line, *_ in meta] == [2 + 2 * n for n in range(30)]


def test_one_column_keeps_whole_lines(con, put):
    info, cells, _ = staged(con, put('text\nHello, world; a|b\n"quoted, too"\n\n""\n'))
    assert (info.delimiter, info.notes) == (None, ("1 blank line left out.",))
    assert cells == [("Hello, world; a|b",), ("quoted, too",), ("",)]


def test_excels_sep_line_and_tsv(con, put):
    info, cells, meta = staged(con, put("sep=;\r\na,x;b\r\n1;2\r\n"))
    assert (info.delimiter, cells, meta[0][0]) == (";", [("1", "2")], 3)
    assert [c.name for c in info.columns] == ["a,x", "b"]
    info, cells, _ = staged(con, put("a,b,c\tb\n1,2,3\t4\n", "t.tsv"))
    assert (info.delimiter, cells) == ("\t", [("1,2,3", "4")])


def test_chosen_delimiter(con, put):
    path = put("a,b~c\n1,2~3\n")
    assert staged(con, path, delimiter="~")[1] == [("1,2", "3")]
    assert staged(con, path, delimiter="")[1] == [("1,2~3",)]
    with pytest.raises(TableError, match="can't be a delimiter"):
        staged(con, path, delimiter="ab")


def test_ragged_rows_are_kept(con, put):
    info, cells, meta = staged(con, put("a,b,c\n1,2\n1,2,3,4\n\n,,\n1,2,3\n"))
    assert cells == [("1", "2", None), ("1", "2", "3"), ("", "", ""), ("1", "2", "3")]
    assert meta[0] == (2, None, None, 2)
    assert meta[1] == (3, "line 3 has 4 cells, the header names 3", "1,2,3,4", None)
    assert meta[2] == (5, None, None, None)
    assert (info.problems, info.notes) == (1, ("1 blank line left out.",))


def test_text_after_a_closing_quote(con, put):
    _, cells, meta = staged(con, put('a,b\n"ab"c,2\n"x\ny"z,3\n4,5\n'))
    assert cells == [("abc", "2"), ("x\nyz", "3"), ("4", "5")]
    assert [problem for _, problem, _, _ in meta] == [
        "line 2: text after a closing quote",
        "lines 3 to 4: text after a closing quote",
        None,
    ]


def test_an_open_quote_does_not_swallow_the_rows_after_it(con, put):
    rows = "".join(f'{n},"fine, {n}"\n' for n in range(3, 6))
    info, cells, meta = staged(con, put(f'a,b\n1,"open\n2,ok\n{rows}'))
    assert (info.rows, info.problems) == (5, 1)
    assert cells[1:] == [("2", "ok"), ("3", "fine, 3"), ("4", "fine, 4"), ("5", "fine, 5")]
    assert meta[0][:3] == (2, "line 2 opens a quote that is never closed", '1,"open')
    assert [line for line, *_ in meta] == [2, 3, 4, 5, 6]


def test_an_open_quote_up_to_the_end_of_the_file(con, put):
    rows = "".join(f"{n},plain\n" for n in range(5000))
    info, cells, meta = staged(con, put(f'a,b\n"two\nlines","open\n{rows}'))
    assert (info.rows, info.problems, cells[-1]) == (5001, 1, ("4999", "plain"))
    assert meta[0][:2] == (2, "line 3 opens a quote that is never closed")
    assert meta[1][0] == 4


def test_a_file_of_open_quotes_takes_linear_time(con, put):
    info, _, _ = staged(con, put("a,b\n" + 'x","\n' * 60_000))
    assert info.rows >= 1 and info.problems >= 1


def test_large_cells_nul_and_line_ends(con, put):
    big = "x" * 1_000_000
    _, cells, _ = staged(con, put(f'a,b\r\n1,"{big}\n{big}"\r\n2,a\0b\r\n3," c "\r\n'))
    assert cells == [("1", f"{big}\n{big}"), ("2", "a\0b"), ("3", " c ")]
    assert staged(con, put("a,b\r1,2\r3,4\r"))[1] == [("1", "2"), ("3", "4")]


def test_a_line_beyond_all_bounds_is_one_bad_row(con, put):
    info, cells, meta = staged(con, put(b"a,b\n1,2\n" + b"x" * (65 << 20) + b"\n3,4\n"))
    assert (info.rows, info.problems, cells[2]) == (3, 1, ("3", "4"))
    assert meta[1][1] == "line 3 is longer than 67,108,864 characters"


def test_names_are_made_unique_with_a_note(con, put):
    info, _, _ = staged(con, put("a,a,a_2,, b ,A\n1,2,3,4,5,6\n"))
    assert [c.name for c in info.columns] == ["a", "a_3", "a_2", "column_4", "b", "A"]
    assert info.notes == (
        "Column 2 is a second 'a'; it is called a_3.",
        "Column 4 had no name; it is called column_4.",
    )


def test_types_for_people(con, put):
    path = put(
        "id,n,x,flag,day,at,nothing,text\n007,1,1.5,true,2024-01-31,2024-01-31 10:00:00,,a\n"
        "008,,-2,no,2024-02-01,2024-02-01T10:00,,1\n"
    )
    info, _, _ = staged(con, path)
    assert [c.type for c in info.columns] == [
        "text", "integer", "number", "boolean", "date", "time", "empty", "text",
    ]  # fmt: skip


# --- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "t.csv is empty"),
        ("t.csv", b" \r\n\n", "t.csv is empty"),
        ("t.csv", b"\xef\xbb\xbf", "t.csv is empty"),
        ("t.csv", b"a,b\n", "has a header but no rows"),
        ("t.csv", b'a,"b\n1,2\n', "header of t.csv .* line 1 opens a quote"),
        ("t.csv", b"PK\x03\x04junk", "ZIP archive or an Excel"),
        ("t.csv", b"\x89PNG\r\n\x1a\n\0\0", "PNG"),
        ("t.csv", b"%PDF-1.7\n", "PDF"),
        ("t.csv", bytes(range(256)) * 8, "binary"),
        ("t.jsonl", b"\n\n", "t.jsonl is empty"),
        ("t.jsonl", b"[1]\nhello\n", "line 1 is not a JSON object but an array"),
        ("t.json", b"[]", "t.json is empty"),
        ("t.json", b'[{"a": 1},\n {"a" 2}]', "t.json is not a JSON array of objects: line 2"),
        ("t.json", b'[{"a": 1}', "the array does not end"),
        ("t.parquet", b"PAR1 no", "t.parquet can't be read as Parquet"),
        ("t.xlsx", b"a,b\n1,2\n", "t.xlsx can't be read as an Excel workbook"),
        ("t.xlsx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(2000), "protected by a password"),
        ("t.doc", b"x", "t.doc has no ending that can be read"),
    ],
)
def test_what_cannot_be_read_says_why(con, put, name, content, message):
    con.execute("CREATE TABLE other AS SELECT 1")
    with pytest.raises(TableError, match=message) as caught:
        tables.stage(put(content, name), con)
    assert caught.value.hint
    assert con.execute("SELECT table_name FROM duckdb_tables()").fetchall() == [("other",)]


def test_missing_file_and_folder(con, tmp_path):
    for path, message in ((tmp_path / "no.csv", "There is no file"), (tmp_path, "is a folder")):
        with pytest.raises(TableError, match=message):
            tables.stage(path, con)


def test_a_failed_stage_leaves_the_table_before_it(con, put):
    first = tables.stage(put("a\n1\n"), con)
    with pytest.raises(TableError):
        tables.stage(put("", "empty.csv"), con)
    assert tables.info(con) == first
    assert con.execute("SELECT c0 FROM input").fetchall() == [("1",)]


def test_info_without_a_table(con):
    with pytest.raises(TableError, match="holds no staged table"):
        tables.info(con)


# --- JSON ------------------------------------------------------------------------------------------

ODD_JSON = (
    '{"a": 1.10, "b": "007", "c": [1, {"x": null}], "d": 12345678901234567890123}\n'
    '{"b": "好", "late": -0, "e": 1E400, "a": 0.1234567890123456789}\n'
    '{"a": null, "n": NaN, "s": "\\ud83d", "u": "\\u4e2d"}\n'
)


def test_jsonl_keeps_numbers_missing_keys_and_order(con, put):
    info, cells, _ = staged(con, put(ODD_JSON, "t.jsonl"))
    assert [c.name for c in info.columns] == ["a", "b", "c", "d", "late", "e", "n", "s", "u"]
    assert cells[0] == ("1.10", '"007"', '[1,{"x":null}]', "12345678901234567890123", *[None] * 5)
    assert cells[1] == ("0.1234567890123456789", '"好"', None, None, "-0", "1E400", None, None, None)
    assert cells[2] == ("null", *[None] * 5, '"NaN"', '"\\ud83d"', '"中"')
    assert [c.type for c in info.columns] == [
        "number", "text", "list", "mixed", "integer", "number", "text", "text", "text",
    ]  # fmt: skip


def test_jsonl_comes_back_value_for_value(con, put, tmp_path):
    info, _, _ = staged(con, put(ODD_JSON, "t.jsonl"))
    out = tmp_path / "out.jsonl"
    assert exported(con, info, out) == 3
    read = [json.loads(line, parse_float=str) for line in out.read_text("utf-8").splitlines()]
    expected = [json.loads(line, parse_float=str, parse_constant=str) for line in ODD_JSON.splitlines()]
    assert read == expected
    assert '"好"' in out.read_text("utf-8")


def test_bad_json_lines_stay_rows(con, put):
    deep = "[" * 100_000
    text = f'{{"a": 1}}\n{{"a": }}\n[1]\n\n{{"a": 2}} x\n{{"a": {deep}\n{{"a": 3}}\n'
    info, cells, meta = staged(con, put(text, "t.ndjson"))
    assert cells == [("1",), (None,), (None,), (None,), (None,), ("3",)]
    assert [line for line, *_ in meta] == [1, 2, 3, 5, 6, 7]
    problems = [problem for _, problem, _, _ in meta]
    assert problems[1].startswith("line 2 is not JSON: Expecting value")
    assert problems[2] == "line 3 is not a JSON object but an array"
    assert problems[3] == "line 5 is not JSON: extra text after column 8"
    assert problems[4].startswith("line 6 is not JSON")
    assert (problems[0], problems[5], meta[2][2], info.problems) == (None, None, "[1]", 4)


def test_json_array_is_read_piece_by_piece(con, put):
    items = [{"n": n, "text": "é" * 70_000, "x": 1.5} for n in range(40)]
    info, cells, meta = staged(con, put(json.dumps(items, indent=1, ensure_ascii=False), "t.json"))
    assert (info.format, info.rows, [c.name for c in info.columns]) == ("json", 40, ["n", "text", "x"])
    assert [json.loads(c) for c in cells[39]] == [39, "é" * 70_000, 1.5]
    assert meta[1][0] == 7
    _, cells, meta = staged(con, put('[{"a": 1}, 5]', "t.json"))
    assert (cells[1], meta[1][1]) == ((None,), "line 1 holds a number where an object should stand")
    assert staged(con, put('{"a": 1}\n{"a": 2}\n', "lines.json"))[1] == [("1",), ("2",)]


# --- Excel and Parquet -----------------------------------------------------------------------------


@pytest.fixture
def workbook(tmp_path):
    path = tmp_path / "book.xlsx"
    with xlsxwriter.Workbook(str(path)) as book:
        sheet = book.add_worksheet("First")
        day = book.add_format({"num_format": "yyyy-mm-dd"})
        sheet.write_row(1, 0, ["id", "n", "x", "day", "", "flag", "error"])
        sheet.write_string(2, 0, "007")
        sheet.write_number(2, 1, 5)
        sheet.write_number(2, 2, 5.25)
        sheet.write_datetime(2, 3, datetime.datetime(2024, 1, 31), day)
        sheet.write_string(2, 4, "unnamed")
        sheet.write_boolean(2, 5, True)
        sheet.write_formula(2, 6, "=1/0", None, "#DIV/0!")
        sheet.write_string(4, 0, "008")
        book.add_worksheet("Second").write_column(0, 0, ["a", "b"])
        book.add_worksheet("Empty")
    return path


def test_excel_values_keep_their_types(con, workbook):
    info, cells, meta = staged(con, workbook)
    assert [c.name for c in info.columns] == ["id", "n", "x", "day", "column_5", "flag", "error"]
    assert cells[0] == ('"007"', "5", "5.25", '"2024-01-31"', '"unnamed"', "true", '"#DIV/0!"')
    assert cells[1] == ('"008"', *[None] * 6)
    assert [line for line, *_ in meta] == [3, 5]
    assert info.columns[3].type == "date"
    assert "1 blank row left out." in info.notes


def test_excel_sheets(con, workbook):
    assert tables.sheets(workbook) == ["First", "Second", "Empty"]
    assert staged(con, workbook, sheet="Second")[1] == [('"b"',)]
    with pytest.raises(TableError, match="has no sheet 'Third'"):
        staged(con, workbook, sheet="Third")
    with pytest.raises(TableError, match=r"'Empty' of book\.xlsx is empty"):
        staged(con, workbook, sheet="Empty")


def test_parquet_keeps_native_types_and_duplicate_names(con, tmp_path):
    path, out = tmp_path / "data [1].parquet", tmp_path / "out.parquet"
    table = pyarrow.Table.from_arrays(
        [
            pyarrow.array([1, None, 3]),
            pyarrow.array([[1, 2], [], None]),
            pyarrow.array([{"x": "a"}, {"x": None}, None]),
            pyarrow.array([datetime.datetime(2024, 1, 1, 1), None, None], pyarrow.timestamp("us")),
            pyarrow.array(["a", "b", "a"]).dictionary_encode(),
        ],
        names=["a", "A", "a", "at", "file_row_number"],
    )
    pyarrow.parquet.write_table(table, path)
    info, cells, meta = staged(con, path)
    assert [(c.name, c.type) for c in info.columns] == [
        ("a", "integer"), ("A", "list"), ("a_2", "object"), ("at", "time"), ("file_row_number", "text"),
    ]  # fmt: skip
    assert cells[0] == (1, [1, 2], {"x": "a"}, datetime.datetime(2024, 1, 1, 1), "a")
    assert [line for line, *_ in meta] == [1, 2, 3]
    assert exported(con, info, out) == 3
    assert pyarrow.parquet.read_table(out).to_pydict()["A"] == [[1, 2], [], None]
    exported(con, info, tmp_path / "out.jsonl")
    first = json.loads((tmp_path / "out.jsonl").read_text("utf-8").splitlines()[0])
    assert first == {
        "a": 1,
        "A": [1, 2],
        "a_2": {"x": "a"},
        "at": "2024-01-01T01:00:00",
        "file_row_number": "a",
    }
    exported(con, info, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text("utf-8").splitlines()[2] == ',[],"{""x"":null}",,b'


# --- the interface around them ---------------------------------------------------------------------


def test_info_limit_and_progress(con, put):
    path = put("id,text\n" + "".join(f"{n},{'x' * 1000}\n" for n in range(20_000)))
    calls = []
    info = tables.stage(path, con, on_progress=lambda rows, share: calls.append((rows, share)))
    assert tables.info(con) == info
    assert calls == sorted(calls) and len(calls) > 2 and calls[-1] == (20_000, 1.0)
    assert tables.stage(path, con, limit=7).rows == 7
    assert con.execute("SELECT max(_row) FROM input").fetchall() == [(6,)]


def test_preview(put, workbook):
    shown = tables.preview(put("id,text\n1,a\n2,b,c\n3\n4,d\n"), rows=3)
    assert shown.rows == [{"id": "1", "text": "a"}, {"id": "2", "text": "b"}, {"id": "3", "text": ""}]
    assert shown.problems == ("line 3 has 3 cells, the header names 2",)
    assert tables.preview(workbook).rows[1]["n"] is None


def test_decode():
    assert tables.decode(Column("a", "text", "text"), None) == ""
    assert tables.decode(Column("a", "json", "list"), "[1]") == [1]
    assert tables.decode(Column("a", "json", "list"), None) is None
    assert tables.decode(Column("a", "native", "list"), [1]) == [1]


def test_export_format():
    assert tables.export_format(Path("a.CSV")) == "csv"
    assert tables.export_format(Path("a.out"), "xlsx") == "xlsx"
    for arguments in ((Path("a.doc"),), (Path("a.csv"), "doc")):
        with pytest.raises(TableError, match="format"):
            tables.export_format(*arguments)


# --- out -------------------------------------------------------------------------------------------

NASTY = [
    "a\rb", "a\nb", "a\r\nb", 'say "hi"', "a,b", "a\tb", "a\0b", "  spaces  ", "",
    "007", "=1+1", "NaN", "好\u2028",
]  # fmt: skip


@pytest.mark.parametrize("name", ["out.csv", "out.tsv"])
@pytest.mark.parametrize("bom", [False, True])
def test_nasty_values_come_back_through_csv_pandas_and_ourselves(con, tmp_path, name, bom):
    path = tmp_path / name
    columns = [Column("id", "text", "text"), Column("text", "text", "text")]
    rows = [(str(n), text) for n, text in enumerate(NASTY)]
    assert tables.write(path, columns, [batch(*zip(*rows, strict=True))], format=name[4:], bom=bom) == len(
        rows
    )
    assert path.read_bytes().startswith(b"\xef\xbb\xbf") == bom
    separator = "\t" if name == "out.tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as stream:
        assert [tuple(row) for row in csv.reader(stream, delimiter=separator)][1:] == rows
    frame = pandas.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    expected = [text for text in NASTY if "\0" not in text]  # pandas' own parser ends a cell at NUL
    assert [text for text in frame["text"] if not text.startswith("a\0") and text != "a"] == expected
    assert staged(con, path)[1] == rows


def test_json_columns_in_csv(tmp_path):
    columns = [Column(name, "json", "mixed") for name in "abcd"]
    values = batch(['"x\\ny"', "1.10"], ["null", '{"k":[1,2]}'], [None, "true"], ['"007"', '""'])
    tables.write(tmp_path / "o.csv", columns, [values], format="csv")
    with (tmp_path / "o.csv").open(encoding="utf-8", newline="") as stream:
        assert list(csv.reader(stream))[1:] == [["x\ny", "", "", "007"], ["1.10", '{"k":[1,2]}', "true", ""]]


def test_json_columns_in_parquet(con, put, tmp_path):
    source = put(
        '{"i": 1, "f": 1.5, "s": "a", "b": true, "m": 1, "l": [1]}\n'
        '{"i": 2, "f": 2, "s": null, "b": false, "m": "x"}\n', "t.jsonl",
    )  # fmt: skip
    info, _, _ = staged(con, source)
    exported(con, info, tmp_path / "o.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "o.parquet")
    assert [str(field.type) for field in table.schema] == [
        "int64",
        "double",
        "string",
        "bool",
        "string",
        "string",
    ]
    assert table.to_pylist()[1] == {"i": 2, "f": 2.0, "s": None, "b": False, "m": '"x"', "l": None}


def test_excel_output_runs_nothing_and_keeps_text(con, tmp_path):
    path = tmp_path / "o.xlsx"
    columns = [Column("id", "text", "text"), Column("v", "json", "mixed"), Column("n", "native", "integer")]
    values = batch(["007", "=1+1", "http://x.y"], ["1.5", "[1]", "true"], [1, None, 2**60])
    tables.write(path, columns, [values], format="xlsx", escape=frozenset({"id"}))
    assert staged(con, path)[1] == [
        ('"007"', "1.5", "1"),
        ('"\'=1+1"', '"[1]"', None),
        ('"http://x.y"', "true", f'"{2**60}"'),
    ]


def test_excel_limits(tmp_path):
    path = tmp_path / "o.xlsx"
    columns = [Column("text", "text", "text")]
    with pytest.raises(TableError, match=r"o.xlsx: row 3, column 'text' has 32,768 characters") as caught:
        tables.write(path, columns, [batch(["x" * 32_767, "x" * 32_768])], format="xlsx")
    assert "CSV" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "written"),
    [("=1+1", "'=1+1"), ("+1 call", "'+1 call"), ("@x", "'@x"), ("-cmd", "'-cmd"),
     ("\tx", "'\tx"), ("\rx", "'\rx"), ("-5", "-5"), ("+1.5e3", "+1.5e3"),
     ("-1,234.5", "-1,234.5"), ("-5+cmd", "'-5+cmd"), ("a=1", "a=1"), ("-", "'-")],
)  # fmt: skip
def test_cells_a_spreadsheet_would_execute(tmp_path, text, written):
    columns = [Column("a", "text", "text"), Column("b", "json", "text"), Column("kept", "text", "text")]
    values = batch([text], [json.dumps(text)], [text])
    tables.write(tmp_path / "o.csv", columns, [values], format="csv", escape=frozenset({"a", "b"}))
    with (tmp_path / "o.csv").open(encoding="utf-8", newline="") as stream:
        assert list(csv.reader(stream))[1] == [written, written, text]


def test_a_broken_export_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "o.csv"
    path.write_text("old")

    def batches():
        yield batch(["1"])
        raise RuntimeError("the database went away")

    for format in ("csv", "jsonl", "parquet", "xlsx"):
        with pytest.raises(RuntimeError, match="went away"):
            tables.write(path, [Column("a", "text", "text")], batches(), format=format)
        assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("o.csv", "old")]


def test_writing_where_nothing_can_be_written(tmp_path):
    for format in ("csv", "jsonl", "parquet", "xlsx"):
        with pytest.raises(TableError, match="can't be written"):
            tables.write(tmp_path / "no" / "o", [Column("a", "text", "text")], [batch(["1"])], format=format)
    with pytest.raises(TableError, match="is a folder"):
        tables.write(tmp_path, [Column("a", "text", "text")], [], format="csv")


# --- properties ------------------------------------------------------------------------------------

CELLS = st.text(st.characters(blacklist_categories=["Cs"]) | st.sampled_from("\",;\t|\r\n\0 '="), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=8), st.sampled_from(["csv", "tsv"]))
def test_any_text_survives_out_and_in(tmp_path_factory, rows, format):
    path = tmp_path_factory.mktemp("any") / f"t.{format}"
    columns = [Column(name, "text", "text") for name in ("one", "two", "three")]
    tables.write(path, columns, [batch(*zip(*rows, strict=True))], format=format)
    with duckdb.connect(":memory:") as con:
        found, cells, _ = staged(con, path, encoding="utf-8")
    assert (cells, found.problems) == (rows, 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["a", "b", "A", "c d"]), JSON), min_size=1, max_size=6))
def test_any_json_survives_in_and_out(tmp_path_factory, items):
    folder = tmp_path_factory.mktemp("any")
    source, array, out = folder / "t.jsonl", folder / "t.json", folder / "out.jsonl"
    source.write_text("".join(json.dumps(item) + "\n" for item in items), "utf-8")
    array.write_text(json.dumps(items, indent=2), "utf-8")
    for path in (source, array):
        with duckdb.connect(":memory:") as con:
            info = tables.stage(path, con)
            if not info.columns:
                continue
            exported(con, info, out)
        assert [json.loads(line) for line in out.read_text("utf-8").split("\n")[:-1]] == items


@settings(max_examples=80, deadline=None)
@given(st.text(st.sampled_from('ab",\n\r; '), min_size=1, max_size=60))
def test_no_line_is_lost_whatever_the_quotes(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "t.csv"
    path.write_bytes(("x,y\n" + text).encode())
    with duckdb.connect(":memory:") as con:
        try:
            _, cells, meta = staged(con, path)
        except TableError as error:
            assert "no rows" in str(error)
            return
    kept = "".join(
        (raw or "") + "".join(cell or "" for cell in row)
        for row, (_, _, raw, _) in zip(cells, meta, strict=True)
    )
    assert all(kept.count(letter) >= text.count(letter) for letter in "ab;")
