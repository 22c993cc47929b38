"""Separated values: separators, quotes and headers are told, and each broken row is named."""

import csv
import io
import tracemalloc

import pytest
from harness.checks import lines, load_text, open_text, read, refusals, sentences, write
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from inputs import forms

ROWS = sentences(12, "good", "bad")
HEADER = [("text", "label")]


def values(rows: list[tuple[int, dict]]) -> list[tuple]:
    return [tuple(row.values()) for _, row in rows]


# ---- Separators, line ends and quotes ----


@pytest.mark.parametrize("ending", [".csv", ".txt", ".data", ".label", ""])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_a_file_is_split_at_its_own_separator(tmp_path, ending, separator):
    others = "".join({",", ";", "|"} - {separator})
    rows = [(f"{text}{others[i % 2]} and so on", label) for i, (text, label) in enumerate(ROWS)]
    table = open_text(tmp_path, f"a{ending}", lines(HEADER + rows, separator))
    assert table.columns == ["text", "label"]
    assert read(table) == (
        [(i, {"text": text, "label": y}) for i, (text, y) in enumerate(rows, 2)],
        [],
    )


def test_a_tsv_is_split_at_tabs_only(tmp_path):
    table = open_text(tmp_path, "a.tsv", "text\n" + "one, two\n" * 9)
    assert values(read(table)[0]) == [("one, two",)] * 9


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;"])
def test_the_separator_line_of_excel_is_obeyed_and_counted(tmp_path, first):
    rows = "text;label\n" + "a, b;1,0\n" * 5 + "short\n"
    table = open_text(tmp_path, "a.csv", f"{first}\r\n{rows}")
    good, problems = read(table)
    assert good[0] == (3, {"text": "a, b", "label": "1,0"}) and len(good) == 5
    assert [problem.partition(", ")[2] for problem in problems] == [
        "line 8: 1 field (expected 2); complete or remove the row"
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_rows_may_end_with_any_usual_line_end(tmp_path, end, ending):
    separator = "\t" if ending == ".tsv" else ","
    content = lines([*HEADER, *ROWS, ("short",)], separator, end)
    rows, problems = read(open_text(tmp_path, f"a{ending}", content))
    assert values(rows) == ROWS and [number for number, _ in rows] == list(range(2, 14))
    assert len(problems) == 1 and f"a{ending}, line 14: 1 field (expected 2)" in problems[0]


@pytest.mark.parametrize("ending", [".tsv", ".csv", ".txt", ""])
@pytest.mark.parametrize("quoted", [True, False])
def test_quotes_between_tabs_enclose_whole_cells_or_are_part_of_the_text(tmp_path, ending, quoted):
    first, second = ('"two\nlines ""x"""', '"tab\there"') if quoted else ('"good" he said', '"open')
    content = "text\tlabel\n" + f"{first}\t0\n{second}\t1\n" * 5
    rows, problems = read(open_text(tmp_path, f"a{ending}", content))
    texts = {text for text, _ in values(rows)}
    assert texts == ({'two\nlines "x"', "tab\there"} if quoted else {first, second})
    assert problems == []


@pytest.mark.parametrize(
    "cell, text",
    [
        ('"good".', "good."),
        ('"good, really" he said', "good, really he said"),
        ('"she said ""no"""', 'she said "no"'),
        ('he said "no"', 'he said "no"'),
        (' "good, really"', "good, really"),
    ],
)
def test_text_after_a_closing_quote_is_read_as_pandas_reads_it(tmp_path, cell, text):
    import pandas

    content = "text,label\n" + f"{cell},good\n" * 3 + lines(ROWS)
    frame = pandas.read_csv(io.StringIO(content), skipinitialspace=True)
    rows, problems = read(open_text(tmp_path, "a.csv", content))
    assert values(rows)[:3] == [(text, "good")] * 3 and problems == []
    assert values(rows) == list(frame.itertuples(index=False, name=None))


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1)


@settings(max_examples=100)
@given(
    st.lists(CELL.filter(str.strip), min_size=1, max_size=8), st.sampled_from([",", ";", "\t", "|"])
)
def test_each_cell_that_the_csv_module_writes_is_read_back_with_its_line(
    tmp_path_factory, cells, delimiter
):
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerow(["text", "label"])
    numbers = []
    for cell in cells:
        numbers.append(file.getvalue().count("\n") + 1)
        writer.writerow([cell, "x"])
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(file.getvalue().encode())
    rows, problems = read(forms.open_file(path))
    assert rows == [(n, {"text": c, "label": "x"}) for n, c in zip(numbers, cells, strict=True)]
    assert problems == []


# ---- The header ----


@pytest.mark.parametrize(
    "first, has_header",
    [
        ("text,label", True),
        ("words,mood", True),
        ("0,1", True),
        (",0", True),
        ("v1,mood", True),
        ("How did you like the stay in the hotel as a whole?,mood", True),
        ("this is the first text,good", False),
        ("It was good as it was.,mood", False),
        ("a great film,0.5", False),
        ("x" * 101 + ",mood", False),
    ],
)
def test_a_header_has_short_cells_no_numbers_and_none_that_comes_again(tmp_path, first, has_header):
    table = open_text(tmp_path, "a.csv", f"{first}\n{lines(ROWS)}")
    rows, problems = read(table)
    assert values(rows)[not has_header :] == ROWS and problems == []
    if has_header:
        assert not table.facts and not any("no header" in note for note in table.notes)
    else:
        assert rows[0] == (1, dict(zip("12", first.split(","), strict=True)))
        assert table.columns == ["1", "2"] and table.facts == {"header": False}
        (note,) = table.notes
        assert note.endswith("has no header: line 1 is data, and the columns are called 1, 2")


def test_the_columns_of_a_file_without_a_header_are_chosen_by_number(tmp_path, capsys):
    rows = [(i, "x", text, label) for i, (text, label) in enumerate(ROWS)]
    text = load_text(tmp_path, "a.csv", lines(rows), ["3"], "4")
    assert sum(map(len, text.splits.values())) == 12 and text.labels == ["bad", "good"]
    assert "line 1 is data, and the columns are called 1, 2, 3, …" in capsys.readouterr().err
    assert text.facts["train"] == {"header": False}


def test_a_first_row_that_looks_like_data_is_a_header_only_if_its_cells_are_named(tmp_path, capsys):
    text = load_text(tmp_path, "a.csv", lines(ROWS), [ROWS[0][0]], "good")
    assert sum(map(len, text.splits.values())) == 11
    note = "line 1: looks like data; it is the header, because it has the chosen columns"
    assert f"NOTE: {tmp_path / 'a.csv'}, {note}" in capsys.readouterr().err.splitlines()
    assert refusals(tmp_path, "a.csv", lines(ROWS), ["text"], "good") == [
        "a.csv: no column 'text' (found '1', '2'); choose one with --text-column",
        "a.csv: no column 'good' (found '1', '2'); choose one with --label-column",
    ]


def test_a_name_that_comes_again_as_a_value_is_a_name_if_it_is_chosen(tmp_path):
    rows = [*ROWS, ("one more text", "mood")]
    text = load_text(tmp_path, "a.csv", "words,mood\n" + lines(rows), ["words"], "mood")
    assert sum(map(len, text.splits.values())) == 13


def test_a_header_that_comes_again_is_an_error_at_its_line(tmp_path):
    content = lines([*HEADER, *ROWS[:4], *HEADER, *ROWS[4:], *HEADER])
    assert refusals(tmp_path, "a.csv", content) == [
        "a.csv, line 6: the header comes again; remove this line",
        "a.csv, line 15: the header comes again; remove this line",
    ]


@pytest.mark.parametrize(
    "header, message",
    [
        ("label", "1 name, but the rows have 2 fields"),
        ("text,label,id", "3 names, but the rows have 2 fields"),
    ],
)
def test_a_header_with_another_number_of_names_is_one_error_at_its_line(tmp_path, header, message):
    problems = refusals(tmp_path, "a.csv", f"\n{header}\n" + lines(ROWS))
    assert problems == [
        f"a.csv, line 2: {message}; name each column in the header, and remove lines above it"
    ]


def test_a_title_above_the_header_is_an_error_at_its_line(tmp_path):
    rows = lines([("id", "text", "label"), *((i, *row) for i, row in enumerate(ROWS))])
    assert refusals(tmp_path, "a.csv", "Results of 2020,,\n" + rows) == [
        "a.csv, line 1: names only 1 of 3 columns; "
        "name each column in the header, and remove lines above it"
    ]


@pytest.mark.parametrize("first, is_sure", [("v1,v2", False), ("my text,v2", True)])
def test_a_header_that_only_its_shape_tells_is_named_in_a_note(tmp_path, first, is_sure):
    rows = [(text, f"value {i}") for i, (text, _) in enumerate(ROWS)]
    table = open_text(tmp_path, "a.csv", f"{first}\n" + lines(rows))
    notes = [f"NOTE: {tmp_path / 'a.csv'}, line 1: taken as the header; it may be data"]
    assert table.columns == first.split(",") and table.notes == notes[is_sure:]


def test_only_columns_in_use_need_names_of_their_own(tmp_path):
    rows = lines([(text, 1, 2, label, "", "") for text, label in ROWS])
    assert load_text(tmp_path, "a.csv", f"text,x,x,label,,\n{rows}").labels == ["bad", "good"]
    assert refusals(tmp_path, "b.csv", f"text,label,x,label,,\n{rows}") == [
        "b.csv: duplicate column 'label'; rename one"
    ]


# ---- Broken rows ----


def test_blank_lines_and_rows_of_separators_are_no_rows(tmp_path):
    content = "\ntext, label\n" + '"good, really", "pos"\n\n,\n   \n"bad", "neg"\n' * 5
    rows, problems = read(open_text(tmp_path, "a.csv", content + ",\n" * 30))
    assert values(rows) == [("good, really", "pos"), ("bad", "neg")] * 5 and problems == []
    assert rows[1][0] == 7


def test_all_broken_rows_are_named_at_once_at_their_lines(tmp_path):
    broken = ["one", '"two\nlines",good', "a,b,c", '"never closed,good', "plain,bad", "a,b,c,d"]
    content = lines(HEADER + ROWS) + "\n".join(broken) + "\n" + lines(ROWS)
    assert refusals(tmp_path, "a.csv", content) == [
        "a.csv, line 14: 1 field (expected 2); complete or remove the row",
        "a.csv, line 17: 3 fields (expected 2); quote texts that contain ,",
        "a.csv, line 18: malformed quotes or line end; close each quote, double a quote in a text, "
        "and end all lines alike",
        "a.csv, line 20: 4 fields (expected 2); quote texts that contain ,",
    ]


def test_a_file_with_hundreds_of_broken_rows_is_reported_in_about_20_lines(tmp_path):
    content = lines(HEADER + ROWS) + "one\n" * 300
    assert 20 <= len(refusals(tmp_path, "a.csv", content)) <= 22


def test_one_ragged_row_between_bare_quotes_is_the_only_one_named(tmp_path):
    rows = [(f'"Great" is here, {i}', i % 2) for i in range(29)]
    content = "sentence\tlabel\n" + lines(rows, "\t") + "no label here\nfine\t1\n"
    for name in ("a.tsv", "a.csv", "a.txt"):
        assert refusals(tmp_path, name, content) == [
            f"{name}, line 31: 1 field (expected 2); complete or remove the row"
        ]


def test_a_field_may_have_more_characters_than_the_csv_module_allows(tmp_path):
    rows, problems = read(open_text(tmp_path, "a.csv", f'text,label\n"{"a, " * 99_999}",x\ny,z\n'))
    assert len(rows[0][1]["text"]) == 299_997 and problems == []


@pytest.mark.parametrize(
    "row, rows",
    [('5,some text","pos\n', 200_000), ('"bad 7 here,pos\n', 50_000)],
    ids=["a lost first quote", "a lost last quote"],
)
def test_a_file_of_malformed_rows_is_refused_without_reading_it_again_for_each_row(
    tmp_path, row, rows
):
    problems = refusals(tmp_path, "a.csv", "text,label\n" + row * rows + "good,pos\n" * 50_000)
    assert 18 <= len(problems) <= 22


def test_a_long_quoted_cell_needs_no_more_memory_than_a_few_copies(tmp_path):
    cell = "x " * 2_500_000
    content = f'text,label\n"{cell}",pos\n' + lines(sentences(40, "pos", "neg"))
    table = open_text(tmp_path, "a.csv", content)
    tracemalloc.start()
    rows, problems = read(table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows[0][1]["text"] == cell and not problems and peak < 20 * len(cell)


def test_the_decision_on_the_header_is_part_of_the_key_of_the_cache(tmp_path):
    content = "1,2\n" + "".join(f"text {i},{i % 2 + 2}\n" for i in range(40))
    content = content.replace("1,2\n", "odd text,3\n", 1)
    assert sum(map(len, load_text(tmp_path, "b.csv", content).splits.values())) == 41
    named = load_text(tmp_path, "b.csv", content, ["odd text"], "3")
    assert sum(map(len, named.splits.values())) == 40


def test_numbers_of_columns_do_not_turn_a_row_of_numbers_into_a_header(tmp_path):
    rows = [(f"{i % 3}", f"{i % 2}", f"the text {i} is fine") for i in range(2, 40)]
    content = lines([("1", "3", "the text 1 is fine"), *rows])
    for split in ("train.csv", "dev.csv"):
        write(tmp_path, split, content)
    text = data.load(str(tmp_path), ["3"], "1")
    assert [len(rows) for rows in text.splits.values()] == [39, 39]
