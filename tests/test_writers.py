"""Rows and predictions are written to every kind of file, and in the format of GLUE's server."""

import csv
import datetime
import decimal
import json

import pyarrow
import pyarrow.parquet
import pytest
from harness.helpers import SST2

SOURCES = {
    "csv": 'id,sentence\n7,"a fine, warm film"\n8,\n9,a dull film\n',
    "tsv": 'id\tsentence\n7\t"a fine, warm film"\n8\t\n9\ta dull film\n',
    "jsonl": '{"id": 7, "sentence": "a fine, warm film"}\n{"id": 8, "more": [1]}\n'
    '{"id": 9, "sentence": "a dull film"}\n',
}


def dialect(ending: str) -> str:
    """The name that the csv module has for files with this ending."""
    return "excel-tab" if ending == "tsv" else "excel"


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("source", ["csv", "tsv", "jsonl", "parquet"])
def test_rows_of_any_kind_of_file_are_written_with_predictions_to_any_other(
    predicted, tmp_path, source, ending
):
    texts = ["a fine, warm film", None, "a dull film"]
    if source == "parquet":
        table = pyarrow.table({"id": [7, 8, 9], "sentence": texts})
        pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    else:
        (tmp_path / f"in.{source}").write_text(SOURCES[source])
    run = predicted(f"in.{source}", "--output", f"out.{ending}")
    assert run.code == 0 and run.out == "", run.err
    out = tmp_path / f"out.{ending}"
    if ending == "parquet":
        rows = pyarrow.parquet.read_table(out).to_pylist()
        id_type = type(rows[0]["id"])
        assert id_type is (int if source == "parquet" else str)
    elif ending == "jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    else:
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file, dialect=dialect(ending)))
    assert [str(row["id"]) for row in rows] == ["7", "8", "9"]
    assert [row.get("sentence") or None for row in rows] == texts
    assert [row["prediction"] or None for row in rows] == ["positive", None, "negative"]
    assert all(0.5 <= float(row["probability"]) <= 1 for row in (rows[0], rows[2]))
    assert not rows[1]["probability"] and not list(tmp_path.glob("*.partial"))


def test_a_carriage_return_in_a_text_starts_no_row(predicted, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a fine\\rfilm"}\n{"text": "a \\"dull\\" film"}\n')
    for ending in ("csv", "tsv"):
        assert predicted("a.jsonl", "--output", f"b.{ending}").code == 0
        with (tmp_path / f"b.{ending}").open(newline="") as file:
            rows = list(csv.DictReader(file, dialect=dialect(ending)))
        assert [row["text"] for row in rows] == ["a fine\rfilm", 'a "dull" film']


def test_dates_decimals_and_missing_numbers_of_parquet_are_written_plainly(predicted, tmp_path):
    day, price = datetime.date(2020, 1, 31), decimal.Decimal("1.50")
    table = {"text": ["fine", "bad"], "day": [day] * 2, "price": [price] * 2}
    pyarrow.parquet.write_table(
        pyarrow.table(table | {"gap": [float("nan")] * 2}), tmp_path / "a.parquet"
    )
    assert predicted("a.parquet", "--output", "b.csv").code == 0
    assert (tmp_path / "b.csv").read_text().splitlines()[1].startswith("fine,2020-01-31,1.50,")
    assert predicted("a.parquet", "--output", "b.jsonl").code == 0
    row = json.loads((tmp_path / "b.jsonl").read_text().splitlines()[0])
    assert row["gap"] is None and row["day"] == "2020-01-31"


def test_a_glue_file_has_the_bytes_that_the_server_accepts(predicted, tmp_path):
    (tmp_path / "test.tsv").write_text(
        'label\tsentence\n-1\ta dull film\n-1\ta "fine film\n-1\ta fine film\n'
    )
    run = predicted("test.tsv", "--glue", "--output", "SST-2.tsv")
    assert run.code == 0 and run.out == "" and "accuracy" not in run.err
    assert run.err == "test.tsv: texts from 'sentence'\n"
    assert (tmp_path / "SST-2.tsv").read_bytes() == b"index\tprediction\n0\t0\n1\t1\n2\t1\n"
    assert predicted("--glue", "test.tsv").out == "index\tprediction\n0\t0\n1\t1\n2\t1\n"


@pytest.mark.skipif(not SST2.exists(), reason="needs GLUE's SST-2 in ../shared/sst2")
def test_a_glue_file_of_the_real_test_split_has_a_line_for_each_sentence(predicted, tmp_path):
    assert predicted(SST2 / "test.tsv", "--glue", "--output", "SST-2.tsv").code == 0
    lines = (tmp_path / "SST-2.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 1822
    assert [line.split("\t")[0] for line in lines[1:]] == list(map(str, range(1821)))
    assert {line.split("\t")[1] for line in lines[1:]} <= {"0", "1"}
