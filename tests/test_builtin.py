"""What ships with the project, and the main job on it: the README's first command without a Hub."""

import ast
import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from harness.helpers import ROOT, SST2, block

sys.path.insert(0, str(ROOT / "benchmarks"))

import accuracy
import builtin_data


def sentences(name: str) -> tuple[list[str], np.ndarray]:
    own, positive = builtin_data.read(name)
    return list(own), positive.copy()


def test_the_builtin_sentences_are_enough_balanced_rich_and_not_alike_and_sst2_has_none_of_them():
    files = {name: sentences(name) for name in ("train.csv", "dev.csv")}
    assert len(files["train.csv"][0]) >= 2000 and len(files["dev.csv"][0]) >= 400
    beginnings = [" ".join(s.lower().split()[:2]) for own, _ in files.values() for s in own]
    assert max(Counter(beginnings).values()) < 0.02 * len(beginnings)
    is_here = (SST2 / "train.tsv").exists()
    texts = builtin_data.read_sst2("train") if is_here else None
    known = builtin_data.read_sst2("dev", "test") if is_here else []
    assert builtin_data.check(files, texts, known) == []


def test_a_contraction_is_two_words_as_sst2_writes_it():
    assert builtin_data.words_of("It isn't.") == builtin_data.words_of("it is n't .")
    assert builtin_data.words_of("It isn't.") == ["it", "is", "n't"]


def test_a_copy_a_lost_balance_a_word_that_tells_and_other_lengths_are_found():
    files = {name: sentences(name) for name in ("train.csv", "dev.csv")}
    (train, ups), (dev, _) = files.values()
    known = "the lighthouse is dull , and the keeper is n't even half as mad as his goat"
    train[0], train[1] = dev[0] + " Truly!", "The lighthouse is dull, and the keeper isn't mad."
    train[2], train[3] = "Lighthouses!", "Lighthouse keepers"
    ups[:] = True
    ups[:1100] = False
    train[300:1100] = [f"{sentence} Alas." for sentence in train[300:1100]]
    texts = [f"{number} is a number of three words" for number in range(1000)]
    problems = builtin_data.check(files, [*texts, "lighthouses", "lighthouse goats"], [known])
    told = f"train.csv: {len(train) - 1100:,} of {len(train):,} are positive, and not half"
    assert told in problems
    assert f"alike: {dev[0]!r} and {train[0]!r}" in problems
    assert f"like one of SST-2's: {train[1]!r}" in problems
    assert f"like one of SST-2's: {train[2]!r}" in problems  # Short, but word for word.
    assert f"like one of SST-2's: {train[3]!r}" not in problems
    assert any(line.startswith("'alas' gives the label away: 0 positive, 800") for line in problems)
    assert any(line.startswith("lengths are not those of SST-2's sentences: ") for line in problems)
    poor = builtin_data.check({"train.csv": (["dull " * 100] * 300, ups[1000:1300])}, None, [])
    assert "1 different words in 30,000, of 5,000" in poor


def test_the_script_that_checks_the_sentences_ends_with_0_only_where_nothing_is_wrong(monkeypatch):
    for problems, code in (([], 0), (["one", "another"], "one\nanother")):
        monkeypatch.setattr(builtin_data, "check", lambda *_, problems=problems: problems)
        with pytest.raises(SystemExit) as ended:
            builtin_data.main()
        assert ended.value.code == code


def check_pipeline(folder: Path, capsys) -> None:
    """The README's lines, on this model: transformers alone reads it and answers with names."""
    code = block("predict")
    assert 'pipeline("text-classification", model="runs/first/model")' in code
    exec(code.replace("runs/first/model", str(folder)), {})
    good, bad = ast.literal_eval(capsys.readouterr().out.strip().splitlines()[-1])
    assert good["label"] == "positive" and bad["label"] == "negative"
    assert good["score"] > 0.8 and bad["score"] > 0.8


@pytest.mark.long
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
def test_a_pass_over_the_real_sst2_by_the_defaults_gets_87_percent_of_held_out_sentences_right(
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
    assert record["result"]["accuracy"] >= 0.87  # The least of six seeds was 0.8765.
