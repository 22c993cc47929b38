"""The built-in sentences, and the README's first command on them without a Hub."""

import ast
import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from harness.helpers import ROOT, SST2, block

sys.path.insert(0, str(ROOT / "benchmarks"))

import accuracy
import builtin_data

FILES = ("train.csv", "dev.csv")


def test_the_builtin_sentences_are_enough_balanced_rich_different_not_from_sst2_and_as_documented(
    capsys,
):
    files = {name: builtin_data.read(name) for name in FILES}
    assert len(files["train.csv"][0]) >= 5000 and len(files["dev.csv"][0]) >= 400
    beginnings = [" ".join(s.lower().split()[:2]) for rows, _ in files.values() for s in rows]
    assert max(Counter(beginnings).values()) < 0.02 * len(beginnings)
    is_available = (SST2 / "train.tsv").exists()
    texts = builtin_data.read_sst2("train") if is_available else None
    other_texts = builtin_data.read_sst2("dev", "test") if is_available else []
    assert builtin_data.check(files, texts, other_texts) == []
    page = (ROOT / "builtin" / "README.md").read_text("utf-8")
    # Two lines before the list of words compare with SST-2.
    printed = capsys.readouterr().out.partition("gain of a rule")[0].splitlines()
    assert len(printed) == (5 if is_available else 3)
    assert all(f"\n{line}\n" in page for line in printed), printed


def test_a_contraction_is_two_words_as_sst2_writes_it():
    assert builtin_data.split_words("It isn't.") == builtin_data.split_words("it is n't .")
    assert builtin_data.split_words("It isn't.") == ["it", "is", "n't"]


def test_the_check_reports_copies_lost_balance_revealing_words_and_wrong_lengths():
    files = {name: builtin_data.read(name) for name in FILES}
    (train, labels), (dev, _) = files.values()
    other_text = "the lighthouse is dull , and the keeper is n't even half as mad as his goat"
    train[0], train[1] = dev[0] + " Truly!", "The lighthouse is dull, and the keeper isn't mad."
    train[2], train[3] = "Lighthouses!", "Lighthouse keepers"
    labels[:] = True
    labels[:1100] = False
    train[300:1100] = [f"{sentence} Zounds." for sentence in train[300:1100]]
    texts = [f"{number} is a number of three words" for number in range(1000)]
    problems = builtin_data.check(files, [*texts, "lighthouses", "lighthouse goats"], [other_text])
    counts = f"{len(train) - 1100:,} of {len(train):,}"
    assert f"train.csv: half of the sentences must be positive (found {counts})" in problems
    assert f"similar: {dev[0]!r} and {train[0]!r}" in problems
    assert f"similar to SST-2: {train[1]!r}" in problems
    # A short sentence is similar only if all words are the same.
    assert f"similar to SST-2: {train[2]!r}" in problems
    assert f"similar to SST-2: {train[3]!r}" not in problems
    assert any(line.startswith("'zounds': reveals the label (found 0 pos") for line in problems)
    assert any(line.startswith("lengths: distance must be at most 0.1 ") for line in problems)
    poor = builtin_data.check({"train.csv": (["dull " * 100] * 300, labels[1000:1300])}, None, [])
    assert "different words: must be 5,000 in 30,000 (found 1)" in poor


def test_the_script_that_checks_the_sentences_exits_with_0_only_without_problems(monkeypatch):
    for problems, code in (([], 0), (["first", "second"], "first\nsecond")):
        monkeypatch.setattr(builtin_data, "check", lambda *_, problems=problems: problems)
        with pytest.raises(SystemExit) as ended:
            builtin_data.main()
        assert ended.value.code == code


def check_pipeline(folder: Path, capsys) -> None:
    """Run the lines of the page on predicting, in which transformers alone reads this model."""
    code = block("predict")
    assert 'pipeline("text-classification", model="runs/first/model", truncation=True)' in code
    exec(code.replace("runs/first/model", str(folder)), {})
    good, bad = ast.literal_eval(capsys.readouterr().out.strip().splitlines()[-1])
    assert good["label"] == "positive" and bad["label"] == "negative"
    assert good["score"] > 0.8 and bad["score"] > 0.8


@pytest.mark.long
def test_the_main_job_without_a_hub_reaches_85_percent_and_its_model_answers_with_names(
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
def test_one_pass_over_the_real_sst2_with_the_defaults_reaches_87_percent_on_held_out_sentences(
    finetune, tmp_path, monkeypatch
):
    monkeypatch.setattr(accuracy, "RUNS", tmp_path / "of-sst2")
    run = finetune(
        *("--model", "builtin", "--data", accuracy.make_data(), "--epochs", "1"),
        *("--output-dir", "run"),
        timeout=3600,
    )
    assert run.code == 0, run.err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    print(run.out, record["result"])
    # The lowest accuracy of six seeds was 0.8765.
    assert record["result"]["accuracy"] >= 0.87
