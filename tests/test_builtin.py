"""What ships with the project, and the main job on it: the README's first command without a Hub."""

import ast
import csv
import json
import re
from pathlib import Path

import pytest
from conftest import ROOT, SST2, block


def read(name: str) -> list[tuple[str, str]]:
    with (ROOT / "builtin" / name).open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["sentence", "label"]
    return [tuple(row) for row in rows[1:]]


def words(sentence: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z']+", sentence.lower()))


def test_the_builtin_sentences_are_balanced_and_enough():
    for name, least in (("train.csv", 600), ("dev.csv", 150)):
        labels = [label for _, label in read(name)]
        assert len(labels) >= least
        assert labels.count("negative") == labels.count("positive") == len(labels) / 2


def test_no_two_builtin_sentences_are_alike_inside_or_across_the_files():
    sentences = [sentence for name in ("train.csv", "dev.csv") for sentence, _ in read(name)]
    sets = [words(sentence) for sentence in sentences]
    for number, one in enumerate(sets):
        for other, another in enumerate(sets[:number]):
            # Words in common of all words: under a half.
            alike = len(one & another) / len(one | another)
            assert alike < 0.5, (sentences[number], sentences[other])


def test_the_builtin_sentences_vary_in_length_and_in_how_they_begin():
    sentences = [sentence for name in ("train.csv", "dev.csv") for sentence, _ in read(name)]
    lengths = [len(sentence.split()) for sentence in sentences]
    assert sum(length <= 7 for length in lengths) > 0.2 * len(lengths)
    assert sum(length >= 21 for length in lengths) > 0.15 * len(lengths)
    beginnings = [" ".join(sentence.lower().split()[:2]) for sentence in sentences]
    assert max(map(beginnings.count, set(beginnings))) < 0.02 * len(sentences)


@pytest.mark.skipif(not SST2.exists(), reason="needs GLUE's SST-2 in ../shared/sst2")
def test_no_builtin_sentence_comes_from_sst2():
    known = {
        " ".join(sorted(words(line.split("\t")[1])))
        for name in ("train", "dev", "test")
        for line in (SST2 / f"{name}.tsv").read_text("utf-8").splitlines()
    }
    for name in ("train.csv", "dev.csv"):
        for sentence, _ in read(name):
            assert len(words(sentence)) < 4 or " ".join(sorted(words(sentence))) not in known


def check_pipeline(folder: Path, capsys) -> None:
    """The README's lines, on this model: transformers alone reads it and answers with names."""
    code = block("predict")
    assert 'pipeline("text-classification", model="runs/first/model")' in code
    exec(code.replace("runs/first/model", str(folder)), {})
    good, bad = ast.literal_eval(capsys.readouterr().out.strip().splitlines()[-1])
    assert good["label"] == "positive" and bad["label"] == "negative"
    assert good["score"] > 0.8 and bad["score"] > 0.8


def test_the_main_job_without_a_hub_reaches_85_percent_and_its_model_names_its_answers(
    finetune, tmp_path, capsys
):
    run = finetune(
        *("--epochs", "3"),
        timeout=900,
        HF_HUB_OFFLINE="0",
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HOME=str(tmp_path / "home"),
    )
    assert run.code == 0, run.err
    epochs = re.findall(r"epoch (\d): \{'accuracy': (0\.\d+|1\.0)\}\n", run.out)
    assert [number for number, _ in epochs] == ["0", "1", "2"]
    assert re.sub(r"epoch \d: \{'accuracy': [\d.]+\}\n", "", run.out) == ""
    print(run.out)
    assert float(epochs[-1][1]) >= 0.85
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-\d{6}", folder.name)
    record = json.loads((folder / "run.json").read_text())
    assert record["replaced"].keys() == {"model", "data"}
    assert record["settings"]["learning_rate"] == 1e-4
    assert record["result"]["accuracy"] == max(float(accuracy) for _, accuracy in epochs)
    notes = [line for line in run.err.splitlines() if line.startswith("NOTE: ")]
    assert len(notes) == 2 and notes[0] == notes[1] == run.err.splitlines()[-1]
    check_pipeline(folder / "model", capsys)


@pytest.mark.slow
@pytest.mark.skipif(not SST2.exists(), reason="needs GLUE's SST-2 in ../shared/sst2")
def test_an_epoch_of_the_real_sst2_reaches_88_5_percent(finetune, tmp_path):
    run = finetune(
        *("--model", "builtin", "--data", SST2, "--epochs", "1", "--learning-rate", "8e-5"),
        *("--batch-size", "32", "--output-dir", "run"),
        timeout=3600,
    )
    assert run.code == 0, run.err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    print(run.out, record["result"])
    assert record["result"]["accuracy"] >= 0.885
