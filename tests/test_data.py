"""data.py turns text into tokens and batches, loses no sentence and tokenizes only once."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from harness import training
from harness.helpers import ROWS

import data
from inputs import encoder


@pytest.fixture(scope="module")
def tokenizer():
    return encoder.load("builtin", ["a", "b"], None).tokenizer


def make_text(tmp_path, texts: list[str], pairs: list[str] | None = None) -> data.LabelledText:
    header = "sentence1,sentence2,label\n" if pairs else "sentence,label\n"
    cells = zip(texts, pairs, strict=True) if pairs else ([text] for text in texts)
    rows = [",".join([*row, str(number % 2)]) + "\n" for number, row in enumerate(cells)]
    (tmp_path / "train.csv").write_text(header + "".join(rows))
    (tmp_path / "dev.csv").write_text(header + "".join(rows))
    return data.load(str(tmp_path))


def test_a_subset_is_drawn_from_the_whole_file(tmp_path):
    texts = [f"text {number}" for number in range(300)]
    split = make_text(tmp_path, texts).splits["train"]
    lines = [data.subset(split, 50, seed)["line"][:] for seed in (1, 1, 2)]
    assert lines[0] == lines[1] != lines[2] and len(set(lines[0])) == 50
    assert lines[0] == sorted(lines[0])
    assert min(lines[0]) < 60 and max(lines[0]) > 240


# ---- Tokens ----


@pytest.mark.parametrize("pair", [False, True])
def test_tokens_equal_the_output_of_the_tokenizer(tmp_path, tokenizer, pair, capsys):
    texts = [text.replace(",", " ") for text, _ in ROWS]
    pairs = texts[::-1] if pair else None
    text = make_text(tmp_path, texts, pairs)
    tokens = data.tokenize(text, tokenizer, 5)["train"]
    expected = tokenizer(texts, pairs, truncation=True, max_length=5)
    keys = ["input_ids", "token_type_ids"] if pair else ["input_ids"]
    assert [tokens[i] for i in range(len(tokens))] == [
        {key: expected[key][i] for key in keys} | {"labels": i % 2} for i in range(len(texts))
    ]
    assert tokens.__getitems__([3, 1]) == [tokens[3], tokens[1]]
    assert tokens.lengths.tolist() == list(map(len, expected["input_ids"]))
    untruncated = tokenizer(texts, pairs)["input_ids"]
    cut = sum(len(ids) > 5 for ids in untruncated)
    messages = capsys.readouterr().err
    assert cut > 0
    assert "train: median length 5 tokens, 95 % up to 5\n" in messages
    for split in ("train", "validation"):
        assert f"{split}: truncated {cut} of {len(texts)} sentences to 5" in messages


def test_the_same_data_is_tokenized_once_even_after_the_tokenizer_was_used(tmp_path):
    def tokenize(max_length: int, side: str = "right") -> tuple[list, int, str]:
        """Tokenize in a new run: the rows of both splits, calls of the tokenizer, and its file."""
        calls = []
        tokenizer = encoder.load("builtin", ["a", "b"], None).tokenizer
        tokenizer.truncation_side = side

        class Counting:
            def __getattr__(self, name):
                return getattr(tokenizer, name)

            def __call__(self, *arguments, **options):
                calls.append(1)
                return tokenizer(*arguments, **options)

        (tmp_path / "train.csv").write_text("text,label\n" + "never twice,0\nnot again,1\n" * 3)
        (tmp_path / "dev.csv").write_text("text,label\n" + "never a third time,0\nno,1\n" * 2)
        splits = data.tokenize(data.load(str(tmp_path)), Counting(), max_length).values()
        model = SimpleNamespace(
            save_pretrained=lambda path: (path / "config.json").write_text("{}")
        )
        encoder.save(model, tokenizer, tmp_path / "saved")
        file = (tmp_path / "saved" / "tokenizer.json").read_text()
        return [[split[i] for i in range(len(split))] for split in splits], len(calls), file

    first, calls, file = tokenize(20)
    assert calls == 2
    for _ in range(2):
        assert tokenize(20) == (first, 0, file)
    # A different length or side gives different tokens.
    assert tokenize(3)[1] == 2
    assert tokenize(20, side="left")[1] == 2


# ---- Classes ----


def test_balanced_weights_equal_scikit_learns_and_skip_classes_without_sentences():
    from sklearn.utils.class_weight import compute_class_weight

    counts = np.array([30, 8, 0, 2])
    labels = np.repeat(np.arange(4), counts)
    weights = data.balanced_weights(counts)
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    assert weights[[0, 1, 3]].tolist() == pytest.approx(expected.tolist())
    assert weights[torch.from_numpy(labels)].mean() == pytest.approx(1)


def test_class_weights_follow_the_counts_of_a_split_and_are_none_by_default(tmp_path, tokenizer):
    (tmp_path / "train.csv").write_text("text,label\n" + "so,0\n" * 6 + "no,1\n" * 3 + "it,2\n")
    (tmp_path / "dev.csv").write_text("text,label\nso,0\nno,1\n")
    tokens = data.tokenize(data.load(str(tmp_path)), tokenizer, 8)
    assert tokens["train"].class_weights(None, "cpu") is None
    weights = tokens["train"].class_weights("balanced", "cpu")
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert len(tokens["validation"].class_weights("balanced", "cpu")) == 3


# ---- Batches ----


@pytest.mark.parametrize(
    "device, max_length, width", [("cpu", 16, 5), ("cuda", 16, 8), ("cuda", 6, 5)]
)
def test_a_gpu_pads_to_a_multiple_of_8_and_no_device_pads_beyond_max_length(
    tmp_path, tokenizer, device, max_length, width
):
    # Three words and two special tokens make five tokens.
    text = make_text(tmp_path, ["warm and funny"] * 4)
    tokens = data.tokenize(text, tokenizer, max_length)["train"]
    settings = training.make_settings("--micro-batch-size", "4")
    settings = dataclasses.replace(settings, device=device)
    loader = data.make_loader(tokens, [np.arange(4)], settings)
    (batch,) = loader.collate_fn(np.arange(2)).micro_batches
    assert batch["input_ids"].shape == (2, width) and loader.pin_memory == (device == "cuda")


@pytest.mark.parametrize(
    "device, size, count", [("cpu", None, 5), ("cpu", 10, 2), ("cuda", None, 1), ("cuda", 4, 5)]
)
def test_a_cpu_limits_micro_batches_to_1024_tokens_unless_micro_batch_size_is_set(
    tmp_path, tokenizer, device, size, count
):
    text = make_text(tmp_path, ["film " * 300] * 20)
    tokens = data.tokenize(text, tokenizer, 240)["train"]
    settings = training.make_settings()
    settings = dataclasses.replace(settings, device=device, micro_batch_size=size)
    loader = data.make_loader(tokens, [np.arange(18)], settings)
    batches = loader.collate_fn(np.arange(18)).micro_batches
    assert len(batches) == count and batches[0]["input_ids"].shape[1] == 240


def test_a_resumed_epoch_has_only_the_remaining_batches_and_reads_only_their_rows(
    tmp_path, tokenizer, monkeypatch
):
    text = make_text(tmp_path, [f"text {number}" for number in range(50)])
    tokens = data.tokenize(text, tokenizer, 16)["train"]
    settings = training.make_settings("--batch-size", "8")
    whole = [batch.rows.tolist() for batch in data.training_loader(tokens, settings, 1)]
    assert sorted(itertools.chain(*whole)) == list(range(50)) and len(whole) == 7
    reads = []
    read = type(tokens).__getitems__
    monkeypatch.setattr(
        type(tokens), "__getitems__", lambda self, rows: reads.extend(rows) or read(self, rows)
    )
    rest = list(data.training_loader(tokens, settings, 1, skip=4))
    assert [batch.rows.tolist() for batch in rest] == whole[4:]
    assert reads == list(itertools.chain(*whole[4:]))
    assert [batch.sentences for batch in rest] == list(map(len, whole[4:]))


def test_only_training_fills_an_empty_share_of_a_batch_with_an_ignored_sentence(
    tmp_path, tokenizer, monkeypatch
):
    tokens = data.tokenize(make_text(tmp_path, ["one", "two", "three"]), tokenizer, 16)["train"]
    monkeypatch.setattr(data.ranks, "world_size", lambda: 4)
    shares = {True: [], False: []}
    for rank in range(4):
        monkeypatch.setattr(data.ranks, "rank", lambda rank=rank: rank)
        for loader, fills in (
            (data.training_loader(tokens, training.make_settings(), 0), True),
            (data.evaluation_loader(tokens, training.make_settings()), False),
        ):
            (share,) = loader
            assert share.sentences == 3
            labels = [int(label) for micro in share.micro_batches for label in micro["labels"]]
            shares[fills].append((share.rows.tolist(), labels))
    for fills, parts in shares.items():
        assert sorted(itertools.chain(*(rows for rows, _ in parts))) == [0, 1, 2]
        assert [] in [rows for rows, _ in parts]
        for rows, labels in parts:
            expected = [row % 2 for row in rows] or ([-100] if fills else [])
            assert labels == expected
