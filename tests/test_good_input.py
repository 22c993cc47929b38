"""The good twins of the bad input: tables as people have them, each through the whole program."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from conftest import ROWS, copy_tokenizer, save_tiny

import data
from system.console import InputError


def record(folder) -> dict:
    return json.loads((folder / "run.json").read_text())


def run_on(in_process, tmp_path, tiny, *flags: object) -> dict:
    run = in_process("--model", tiny, "--epochs", "1", "--output-dir", "run", *flags)
    assert run.code == 0, run.err
    assert run.out.startswith("epoch 0: {'accuracy': ") and run.out.count("\n") == 1
    return record(tmp_path / "run") | {"err": run.err}


def test_an_excel_csv_with_mark_crlf_semicolons_and_quoted_newlines_trains(
    in_process, tmp_path, tiny
):
    rows = [*ROWS, ("NA", "negative"), ("None", "negative"), ("two\r\nlines; one cell", "positive")]
    lines = "".join(f'"{text}";{label}\r\n' for text, label in rows)
    (tmp_path / "own.csv").write_bytes(("\ufeffReview;Sentiment\r\n" + lines).encode())
    run = run_on(in_process, tmp_path, tiny, "--data", "own.csv")
    assert run["labels"] == ["negative", "positive"]
    assert run["sentences"] == {"train": 38, "validation": 5}
    assert "5 of 43 sentences are held out" in run["err"]


def test_glues_own_folder_trains_as_it_was_downloaded(in_process, tmp_path, tiny):
    (tmp_path / "SST-2").mkdir()
    bare_quote = '1\t" a film with a bare quote \n'
    for name, label in (("train", None), ("dev", None), ("test", -1)):
        lines = [
            f"{int(word == 'positive') if label is None else label}\t{t}\n" for t, word in ROWS
        ]
        text = "label\tsentence\n" + "".join(lines) + (bare_quote if label is None else "")
        (tmp_path / "SST-2" / f"{name}.tsv").write_text(text)
    run = run_on(in_process, tmp_path, tiny, "--data", "SST-2")
    assert run["labels"] == ["0", "1"]
    assert run["sentences"] == {"train": 41, "validation": 41}
    assert "the test split has no labels; it is left out" in run["err"]


def test_jsonl_pairs_with_true_and_false_train(in_process, tmp_path, tiny):
    rows = [{"a": text, "b": "is it good ?", "ok": word == "positive"} for text, word in ROWS]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    flags = ["--data", "pairs.jsonl", "--text-column", "a", "b", "--label-column", "ok"]
    assert run_on(in_process, tmp_path, tiny, *flags)["labels"] == ["false", "true"]


def test_a_parquet_folder_with_a_labelled_test_split_is_tested_once(in_process, tmp_path, tiny):
    (tmp_path / "d").mkdir()
    columns = {
        "text": [text for text, _ in ROWS],
        "stars": [1 + 4 * (word == "positive") for _, word in ROWS],
    }
    for name in ("train", "validation", "test"):
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "d" / f"{name}.parquet")
    run = run_on(in_process, tmp_path, tiny, "--data", "d", "--max-train-samples", "20")
    assert run["sentences"] == {"train": 20, "validation": 40, "test": 40}
    assert run["result"]["test_accuracy"] == run["result"]["accuracy"]  # Of the same sentences.
    assert run["err"].count("test: {'accuracy'") == 1


def test_the_builtin_data_is_found_from_any_folder(in_process, tmp_path, tiny):
    flags = ["--data", "builtin", "--max-train-samples", "64"]
    assert run_on(in_process, tmp_path, tiny, *flags)["labels"] == ["negative", "positive"]


# ---- Without a process each: what is read, exactly ----


def load(tmp_path, name: str, content: str) -> data.LabelledText:
    (tmp_path / name).write_bytes(content.encode())
    return data.load(str(tmp_path / name))


def test_labels_that_are_numbers_are_ordered_by_value_and_words_as_text(tmp_path):
    rows = "".join(f"text {i},{label}\n" for i, label in enumerate([10, 9, -1, "2.0", 2] * 4))
    assert load(tmp_path, "a.csv", "text,label\n" + rows).labels == ["-1", "2", "9", "10"]
    rows = "".join(f"text {i},{label}\n" for i, label in enumerate(["b", "a", "C", "é"] * 4))
    assert load(tmp_path, "b.csv", "text,label\n" + rows).labels == ["C", "a", "b", "é"]


def test_a_tenth_of_each_class_is_held_out_and_a_class_of_one_stays_in_training(tmp_path):
    labels = ["a"] * 200 + ["b"] * 50 + [f"rare{i % 3}" for i in range(6)] + ["single"]
    text = load(
        tmp_path, "a.csv", "text,label\n" + "".join(f"t{i},{x}\n" for i, x in enumerate(labels))
    )
    train, held = text.splits["train"]["label"][:], text.splits["validation"]["label"][:]
    assert sorted(train + held) == sorted(labels)
    assert 20 <= held.count("a") <= 21 and 5 <= held.count("b") <= 6
    assert "single" in train and "single" not in held
    assert all(train.count(name) >= 1 for name in set(labels))
    again = data.load(str(tmp_path / "a.csv"), seed=0).splits["validation"]["text"][:]
    other = data.load(str(tmp_path / "a.csv"), seed=1).splits["validation"]["text"][:]
    assert again == text.splits["validation"]["text"][:] != other


def test_hundreds_of_classes_keep_their_ids(tmp_path):
    content = "text,label\n" + "".join(f"t{i},{i % 300}\n" for i in range(3000))
    text = load(tmp_path, "a.csv", content)
    assert text.labels == [str(i) for i in range(300)]
    assert text.ids == {str(i): i for i in range(300)}


def test_one_number_however_written_is_one_label_and_large_ones_stay_apart(tmp_path):
    spellings = ["1", "1.0", "01", "+1", "0", "0.0", "-0", "1e-7", "100000000000000000000000000001"]
    spellings += ["100000000000000000000000000002", "1e2", ".5", "0.50"]
    rows = "".join(f"text {i},{label}\n" for i, label in enumerate(spellings * 2))
    text = load(tmp_path, "a.csv", "text,label\n" + rows)
    assert text.labels == ["0", "0.0000001", "0.5", "1", "100", *spellings[8:10]]
    assert text.ids["01"] == text.ids["+1"] == 3 and text.ids["-0"] == 0
    assert len(text.splits["validation"]) == 3


def test_columns_that_are_not_used_may_hold_anything(tmp_path):
    odd = pyarrow.array([10**15] * 10, pyarrow.timestamp("s"))
    columns = {
        "text": [f"t{i}" for i in range(10)],
        "label": [i % 2 for i in range(10)],
        "odd": odd,
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    assert data.load(str(tmp_path / "a.parquet")).labels == ["0", "1"]
    header = '"text","a;b;c", label\n'
    rows = "".join(f"t{i},x,{i % 2}\n" for i in range(10))
    assert load(tmp_path, "b.csv", header + rows).labels == ["0", "1"]


def test_a_test_split_without_the_label_column_is_left_out_also_where_it_was_named(tmp_path):
    (tmp_path / "train.csv").write_text("text,y\n" + "good,1\nbad,0\n" * 5)
    (tmp_path / "test.csv").write_text("text\nfine\n")
    assert data.load(str(tmp_path), label_column="y").splits.keys() == {"train", "validation"}
    (tmp_path / "test.csv").write_text("id,words\n1,fine\n")
    with pytest.raises(InputError, match=r"test\.csv: no column 'text'; the columns are 'id'"):
        data.load(str(tmp_path), label_column="y")


def test_a_file_that_is_wrong_throughout_is_told_in_20_lines(tmp_path):
    with pytest.raises(InputError) as caught:
        load(tmp_path, "a.csv", "a title line\n" + "text,label\n" * 300)
    assert 20 <= len(caught.value.problems) <= 22
    with pytest.raises(InputError) as caught:
        load(tmp_path, "a.jsonl", "[\n" + "1,\n" * 300)
    assert 20 <= len(caught.value.problems) <= 22


def test_spaces_after_commas_and_empty_lines_are_no_part_of_a_csv(tmp_path):
    rows = '"good, really", "pos"\n\n"bad", "neg"\n' * 5
    text = load(tmp_path, "a.csv", "\nsentence, label\n" + rows)
    assert text.labels == ["neg", "pos"]
    assert set(text.splits["train"]["text"]) == {"good, really", "bad"}
    with pytest.raises(InputError, match=r"line 18: no label in 'label'"):
        load(tmp_path, "b.csv", "\nsentence, label\n" + rows + "fine,\n")


def test_one_column_is_not_both_text_and_label(tmp_path):
    load(tmp_path, "a.csv", "text,label\n" + "a,1\nb,0\n" * 3)
    with pytest.raises(InputError, match="a column is used twice"):
        data.load(str(tmp_path / "a.csv"), text_columns=["label"], label_column="label")


def test_labels_that_are_no_words_or_numbers_are_refused(tmp_path):
    with pytest.raises(InputError, match="line 1: \\[1\\] in 'label' is no word"):
        load(tmp_path, "a.jsonl", '{"text": "a", "label": [1]}\n')


def test_one_number_among_two_hundred_names_of_classes_is_a_label(tmp_path):
    names = [f"name{i}" for i in range(199)] + ["24"]
    rows = "".join(f"text {i},{names[i % 200]}\n" for i in range(2000))
    assert load(tmp_path, "a.csv", "text,label\n" + rows).labels == sorted(names)


@pytest.mark.parametrize("missing", ["-1", "-1.0"])
def test_a_test_split_of_minus_ones_has_labels_only_where_training_has_them(tmp_path, missing):
    (tmp_path / "test.csv").write_text(f"text,label\nfine,{missing}\n")
    (tmp_path / "train.csv").write_text("text,label\n" + "good,1\nbad,0\n" * 5)
    assert "test" not in data.load(str(tmp_path)).splits
    (tmp_path / "train.csv").write_text("text,label\n" + "good,1\nbad,-1\n" * 5)
    assert "test" in data.load(str(tmp_path)).splits


def test_a_pair_is_found_by_its_names_and_every_split_is_read_alike(tmp_path):
    rows = "who ?,he did,yes\nwhere ?,she did,no\n" * 3
    text = load(tmp_path, "qnli.csv", "question,sentence,label\n" + rows)
    assert text.text_columns == ["question", "sentence"]
    assert set(text.splits["train"]["text_pair"]) == {"he did", "she did"}
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.csv").write_text("text,label\n" + "good,1\nbad,0\n" * 3)
    (tmp_path / "d" / "dev.csv").write_text("sentence,text,label\n" + "x,good,1\ny,bad,0\n" * 3)
    assert data.load(str(tmp_path / "d")).splits["validation"]["text"][:2] == ["good", "bad"]
    (tmp_path / "d" / "dev.csv").write_text("sentence,label\n" + "good,1\nbad,0\n" * 3)
    with pytest.raises(InputError, match=r"dev\.csv: no column 'text'"):
        data.load(str(tmp_path / "d"))


def test_the_same_bytes_are_read_as_their_ending_says(tmp_path):
    content = 'text\tlabel\n"a ""b"""\t1\n"c"" d\t0\n' + "e\t1\nf\t0\n" * 9
    with pytest.raises(InputError):
        load(tmp_path, "a.csv", content)
    assert '"c"" d' in load(tmp_path, "a.tsv", content).splits["train"]["text"][:]
    with pytest.raises(InputError):
        load(tmp_path, "a.csv", content)


def test_a_name_that_is_a_number_is_a_label_among_names(tmp_path):
    rows = "".join(f"text {i},{('24', 'Lost', 'Heroes')[i % 3]}\n" for i in range(30))
    assert load(tmp_path, "a.csv", "text,label\n" + rows).labels == ["24", "Heroes", "Lost"]


@pytest.mark.parametrize("quoted", [True, False])
def test_quotes_in_a_tsv_are_the_writers_or_the_texts(tmp_path, quoted):
    good, fine = ('"two\nlines ""x"""', '"tab\there"') if quoted else ('"good" he said', '"open')
    content = "text\tlabel\n" + f"{good}\t0\n{fine}\t1\n" * 5
    texts = set(load(tmp_path, "a.tsv", content).splits["train"]["text"])
    assert texts == ({'two\nlines "x"', "tab\there"} if quoted else {good, fine})


def test_a_changed_file_is_read_anew(tmp_path):
    content = "text,label\n" + "good,1\nbad,0\n" * 5
    assert load(tmp_path, "a.csv", content).labels == ["0", "1"]
    assert load(tmp_path, "a.csv", content.replace("1", "2")).labels == ["0", "2"]


def test_a_list_of_columns_that_is_not_there_names_those_that_are(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(
        InputError, match="no column 'text'; the columns are 'x', 'y'; name another"
    ):
        data.load(str(tmp_path / "a.csv"), text_columns=["text"], label_column="y")


def test_a_checkpoint_in_fp16_trains_in_float32_and_keeps_label_names(tmp_path, tiny):
    import torch
    from transformers import AutoModelForSequenceClassification

    from inputs import encoder as models

    half = AutoModelForSequenceClassification.from_pretrained(tiny, dtype=torch.float16)
    half.save_pretrained(tmp_path / "half")
    copy_tokenizer(tmp_path / "half")
    model, _, length = models.load_model(str(tmp_path / "half"), ["bad", "good"], None)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.id2label == {0: "bad", 1: "good"} and length == 64


def test_a_head_for_the_same_labels_is_kept_and_one_for_others_is_not(tmp_path, tiny, capsys):
    import torch
    from transformers import AutoModelForSequenceClassification

    from inputs import encoder as models

    labels = ["negative", "positive"]
    other = AutoModelForSequenceClassification.from_pretrained(tiny)
    other.config.id2label = {0: "positive", 1: "negative"}
    other.config.label2id = {"positive": 0, "negative": 1}
    other.classifier.bias.data.copy_(torch.tensor([5.0, -5.0]))
    other.save_pretrained(tmp_path / "other")
    copy_tokenizer(tmp_path / "other")
    loaded = models.load_model(str(tmp_path / "other"), labels, None)[0]
    assert "the classification head is new" in capsys.readouterr().err
    assert loaded.classifier.bias.tolist() == [0, 0]
    assert not torch.equal(loaded.pre_classifier.weight, other.pre_classifier.weight)
    encoder, again = other.distilbert.state_dict(), loaded.distilbert.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in encoder.items())

    kept = models.load_model(str(tmp_path / "other"), labels[::-1], None)[0]
    assert "the classification head is new" not in capsys.readouterr().err
    assert kept.classifier.bias.tolist() == [5, -5]


def test_a_config_that_asks_for_other_outputs_trains(in_process, tmp_path):
    config = save_tiny(tmp_path / "model") / "config.json"
    asks = {"return_dict": False, "output_attentions": True, "output_hidden_states": True}
    config.write_text(json.dumps(json.loads(config.read_text()) | asks))
    run_on(in_process, tmp_path, "model", "--data", "builtin", "--max-train-samples", "32")


def test_a_tokenizer_with_fixed_padding_does_not_pad(tmp_path):
    from inputs import encoder as models

    content = "text,label\n" + "a good film,1\na bad film that is far too long,0\n" * 5
    text = load(tmp_path, "a.csv", content)
    _, tokenizer, _ = models.load_model("builtin", text.labels, None)  # Its file says: always 128.
    tokens = data.tokenize(text.splits["train"], text.ids, tokenizer, 8, "train")
    assert set(tokens.lengths) == {5, 8}
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["padding"] is None
