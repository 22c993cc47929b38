"""Labels of a file are compared with the model's by name, and by id only if the order is known."""

import pytest
from harness.checks import write
from harness.helpers import ROWS

from outputs import classifier as classifiers


def test_labels_of_a_file_are_compared_by_name(predicted, tmp_path):
    rows = [*ROWS[:8], ("a dull film", "positive"), ("a fine film", "unsure")]
    (tmp_path / "names.csv").write_text(
        "sentence,label\n" + "".join(f'"{t}",{x}\n' for t, x in rows)
    )
    run = predicted("names.csv")
    assert run.out.count("\n") == 10 and run.code == 0
    assert "accuracy 0.8889: 8 of 9 correct" in run.err
    lines = [line.split() for line in run.err.splitlines()]
    # The columns are precision, recall, F1 and rows; the confusion matrix follows.
    assert ["negative", "0.8000", "1.0000", "0.8889", "4"] in lines
    assert ["positive", "1.0000", "0.8000", "0.8889", "5"] in lines
    assert ["negative", "4", "0"] in lines and ["positive", "1", "4"] in lines
    assert "column 'label': labels unknown to the model (found 'unsure'); their rows" in run.err
    assert "names.csv: texts from 'sentence', labels from 'label'" in run.err
    (tmp_path / "stars.csv").write_text('sentence,stars\n"a fine film",5\n"a dull film",1\n')
    run = predicted("--text-column", "sentence", "stars.csv")
    # Label 1 is not read as a class id, because 5 is not a class id.
    assert "accuracy" not in run.err and "unknown to the model (found '1', '5')" in run.err


def with_record(classifier, names: list[str] | None = None, **changes: object):
    """The classifier as if its run.json were different; None: a model without a run."""
    record = classifier.record | changes if changes else None
    return classifier._replace(record=record, labels=names or classifier.labels)


ORDERS = {
    "sorted names": ({"reading": {"has_class_names": False}}, False),
    "an earlier version's run": ({"reading": {}}, False),
    "names of the data set": ({"reading": {"has_class_names": True}}, True),
    "builtin": ({"settings": {"data": "builtin", "text_column": ["sentence"]}}, True),
    "a model without a run": ({}, True),
}


@pytest.mark.parametrize("changes, is_known", ORDERS.values(), ids=ORDERS)
def test_ids_are_compared_with_names_only_if_their_order_is_known(
    predicted, classifier, monkeypatch, tmp_path, changes, is_known
):
    monkeypatch.setattr(classifiers, "load", lambda _: with_record(classifier, **changes))
    numbers = {"negative": "0.0", "positive": "1"}
    rows = "".join(f'"{text}",{numbers[label]}\n' for text, label in ROWS)
    write(tmp_path, "ids.csv", f'sentence,label\n{rows}"a fine film",-1\n')
    run = predicted("ids.csv")
    note = "NOTE: ids.csv, column 'label': ids in place of names; "
    if is_known:
        assert note + "0 is 'negative', 1 is 'positive'" in run.err.splitlines()
        assert "accuracy 1.0000: 40 of 40 correct" in run.err
    else:
        unknown = "the order of the model's classes is unknown, so there is no score"
        assert note + unknown in run.err.splitlines() and "accuracy" not in run.err
    assert run.code == 0 and run.out.count("\n") == 41


def test_codes_are_compared_as_written(predicted, classifier, monkeypatch, tmp_path):
    named = with_record(classifier, ["007", "7"])
    monkeypatch.setattr(classifiers, "load", lambda _: named)
    write(tmp_path, "a.csv", "sentence,label\na fine film,7\na dull film,007\n")
    run = predicted("a.csv")
    assert "accuracy 1.0000: 2 of 2 correct" in run.err and "ids" not in run.err


@pytest.mark.parametrize(
    "names, lines",
    [
        (["not_entailment", "entailment"], ["1\tentailment", "0\tnot_entailment"]),
        (["neutral", "entailment", "contradiction"], ["1\tentailment", "0\tneutral"]),
        (["not_equivalent", "equivalent"], ["1\t1", "0\t0"]),
        (["0", "1"], ["1\t1", "0\t0"]),
    ],
)
def test_glue_gets_names_for_the_tasks_whose_server_reads_names(
    predicted, classifier, monkeypatch, tmp_path, names, lines
):
    named = with_record(classifier, names)
    monkeypatch.setattr(classifiers, "load", lambda _: named)
    write(tmp_path, "test.tsv", "index\tsentence\n0\ta dull film\n1\ta fine film\n")
    run = predicted("test.tsv", "--glue")
    assert run.out.splitlines() == ["index\tprediction", *sorted(lines)]
