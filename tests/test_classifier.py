"""A model that cannot classify is refused, and the batch size changes no prediction."""

import json
import shutil

import numpy as np
import pytest
from harness.helpers import NEGATIVE, POSITIVE

from outputs import classifier as classifiers
from system.console import InputError


def test_a_model_without_a_head_or_without_files_is_refused(predicted, tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    record = {"settings": {}, "asked": {}, "replaced": {}, "fingerprints": {}, "versions": {}}
    record |= {"resumed": [], "result": None}
    (tmp_path / "begun" / "run.json").write_text(json.dumps(record))
    for run, message in {
        str(tiny): "the model has no classification head",
        "empty": "empty: missing config.json",
        "begun": "begun: model/ is missing; complete an epoch of this run, or restore a copy",
        "nobody/nothing": "nobody/nothing: no such folder, not complete in the cache, and the",
        "./no/folder/here": "./no/folder/here: no such folder",
        "": "RUN: missing; name the folder of a run or a model",
    }.items():
        answer = predicted("a text", run=run)
        assert answer.code == 2 and answer.out == "" and message in answer.errors[0], answer.err
        assert "--model" not in answer.err and "--output-dir" not in answer.err


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"problem_type": "regression"}, "a head that gives one label per text"),
        ({"problem_type": "multi_label_classification"}, "found problem_type multi_label"),
        ({"id2label": {"1": "a", "2": "b"}}, "id2label in config.json must count from 0"),
    ],
)
def test_a_model_whose_head_does_not_give_one_label_per_text_is_refused(
    predicted, trained, tmp_path, changes, message
):
    folder = shutil.copytree(trained.model_folder, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    run = predicted("a text", run=str(folder))
    assert run.code == 2 and len(run.errors) == 1 and message in run.err, run.err


def test_a_damaged_run_json_is_reported_without_a_flag_of_finetune_py(trained, tmp_path):
    folder = shutil.copytree(trained.folder, tmp_path / "copy")
    (folder / "run.json").write_text("{")
    with pytest.raises(InputError) as caught:
        classifiers.load(str(folder))
    (problem,) = caught.value.problems
    assert str(problem).startswith(f"{folder}: run.json cannot be read")
    assert not problem.flag


def test_predictions_keep_the_order_of_the_texts_at_any_batch_size(classifier):
    texts = [*POSITIVE, "a " * 300, *NEGATIVE, "x"]
    updates: list[int] = []
    classes, probabilities = classifiers.answer(
        classifier, texts, batch_size=3, on_batch=updates.append
    )
    assert sum(updates) == len(texts) and max(updates) == 3
    for number, text in enumerate(texts):
        single = classifiers.answer(classifier, [text])
        assert single[0].tolist() == [classes[number]]
        assert single[1] == pytest.approx(probabilities[number : number + 1], abs=1e-4)
    assert (classes.dtype, probabilities.dtype) == (np.int64, np.float32)
    names = [classifier.labels[number] for number in classes]
    assert names[:4] == ["positive"] * 4 and names[5:9] == ["negative"] * 4
