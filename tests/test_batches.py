"""Text to tokens to batches: nothing lost, nothing repeated, little padded, order by seed alone."""

import csv
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, ROWS
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from inputs import files as readers

# The sentences of SST-2's training data by number of tokens (bert-base-uncased), from 0 tokens on.
SST2_LENGTHS = json.loads((ROOT / "benchmarks" / "sst2_lengths.json").read_text())
LENGTHS = st.lists(st.integers(1, 70), min_size=1, max_size=300).map(np.array)


@given(LENGTHS, st.integers(1, 40), st.integers(0, 2**64 - 1), st.integers(0, 5))
def test_each_sentence_comes_once_an_epoch_in_full_batches_but_one(lengths, size, seed, epoch):
    for batches in (
        data.epoch_batches(lengths, size, seed, epoch),
        data.sorted_batches(lengths, size),
    ):
        assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
        assert sorted(map(len, batches), reverse=True)[:-1] == [size] * (len(batches) - 1)
        assert len(batches) == -(-len(lengths) // size)


def test_the_order_of_an_epoch_follows_from_seed_and_epoch_alone():
    lengths = np.random.default_rng(0).integers(3, 60, 1000)

    def order(*arguments: int) -> list:
        return np.concatenate(data.epoch_batches(lengths, 32, *arguments)).tolist()

    first = order(42, 0)
    torch.manual_seed(7)
    np.random.seed(7)
    assert order(42, 0) == first
    assert order(42, 1) != first != order(43, 0)


def test_no_stretch_of_an_epoch_holds_only_long_sentences():
    lengths = np.random.default_rng(0).integers(3, 60, 20_000)
    batches = data.epoch_batches(lengths, 32, 42, 0)
    means = np.array([lengths[batch].mean() for batch in batches])
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.1
    assert np.std([lengths[batch].std() for batch in batches]) < lengths.std() / 4


@pytest.mark.parametrize("batch_size", [16, 32])
def test_padding_is_under_5_percent_of_what_is_computed_on_sst2(batch_size):
    lengths = np.repeat(np.arange(len(SST2_LENGTHS)), SST2_LENGTHS)
    assert len(lengths) == 67_349
    computed = sum(
        len(batch) * lengths[batch].max()
        for batch in data.epoch_batches(lengths, batch_size, 42, 0)
    )
    share = 1 - lengths.sum() / computed
    print(f"padding at batch {batch_size}: {share:.2%}")
    assert share < 0.05


def test_who_meets_whom_in_a_batch_changes_with_the_epoch_on_small_data_too():
    lengths = np.random.default_rng(0).integers(3, 60, 700)

    def company(epoch: int) -> set[tuple[int, int]]:
        batches = data.epoch_batches(lengths, 32, 42, epoch)
        return {
            (a, b) for batch in batches for a in batch.tolist() for b in batch.tolist() if a < b
        }

    assert len(company(0) & company(1)) < 0.3 * len(company(0))


def test_evaluation_begins_with_the_longest_sentences():
    lengths = np.random.default_rng(0).integers(3, 60, 700)
    in_order = lengths[np.concatenate(data.sorted_batches(lengths, 32))]
    assert (np.diff(in_order) <= 0).all()


def test_a_subset_is_drawn_from_all_of_the_file(tmp_path):
    texts = [f"text {number}" for number in range(300)]
    split = make_text(tmp_path, texts).splits["train"]
    lines = [data.subset(split, 50, seed)["line"][:] for seed in (1, 1, 2)]
    assert lines[0] == lines[1] != lines[2] and len(set(lines[0])) == 50
    assert min(lines[0]) < 60 and max(lines[0]) > 240


@given(
    st.lists(st.lists(st.integers(1, 99), min_size=1), min_size=1),
    st.none() | st.integers(1, 8),
    st.integers(1, 200),
    st.sampled_from([1, 8]),
)
def test_micro_batches_hold_the_same_tokens_padded_to_their_own_longest(
    rows, most, most_tokens, multiple
):
    encoded = [
        {"input_ids": row, "token_type_ids": [1] * len(row), "labels": number}
        for number, row in enumerate(rows)
    ]
    batches = data.collate(encoded, 0, most, most_tokens, multiple)
    longest = max(map(len, rows))
    back = []
    for batch in batches:
        assert 1 <= len(batch["labels"]) <= (most or len(rows))
        assert most or len(batch["labels"]) * longest <= max(most_tokens, longest)
        assert batch["input_ids"].shape == batch["attention_mask"].shape
        assert torch.equal(batch["token_type_ids"], batch["attention_mask"])
        own, width = batch["attention_mask"].sum(1).max(), batch["input_ids"].shape[1]
        assert own <= width < own + multiple and width % multiple == 0
        for ids, mask, label in zip(
            *(batch[key] for key in ("input_ids", "attention_mask", "labels")), strict=True
        ):
            assert ids[mask == 0].eq(0).all()
            assert mask.tolist() == sorted(mask.tolist(), reverse=True)
            real = ids[mask == 1].tolist()
            back.append(
                {"input_ids": real, "token_type_ids": [1] * len(real), "labels": int(label)}
            )
    assert back == encoded


@pytest.mark.parametrize(
    "device, max_length, width", [("cpu", 16, 5), ("cuda", 16, 8), ("cuda", 6, 5)]
)
def test_lengths_are_rounded_up_to_8_on_a_gpu_and_never_beyond_the_models_positions(
    tmp_path, tokenizer, device, max_length, width
):
    text = make_text(tmp_path, ["warm and funny"] * 4)  # With two special tokens, five.
    tokens = data.tokenize(text.splits["train"], text.ids, tokenizer, max_length, "train")
    loader = data.make_loader(tokens, [np.arange(4)], 0, 4, max_length, device)
    (batch,) = loader.collate_fn(np.arange(2)).micro_batches
    assert batch["input_ids"].shape == (2, width) and loader.pin_memory == (device == "cuda")


@pytest.mark.parametrize(
    "device, most, parts", [("cpu", None, 5), ("cpu", 10, 2), ("cuda", None, 1), ("cuda", 4, 5)]
)
def test_a_cpu_takes_1024_tokens_at_a_time_unless_a_number_of_sentences_is_asked_for(
    tmp_path, tokenizer, device, most, parts
):
    text = make_text(tmp_path, ["film " * 300] * 20)
    tokens = data.tokenize(text.splits["train"], text.ids, tokenizer, 240, "train")
    loader = data.make_loader(tokens, [np.arange(18)], 0, most, 240, device)
    batches = loader.collate_fn(np.arange(18)).micro_batches
    assert len(batches) == parts and batches[0]["input_ids"].shape[1] == 240


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1)


@settings(max_examples=200)
@given(st.lists(CELL.filter(str.strip), min_size=1, max_size=8), st.sampled_from([",", ";", "\t"]))
def test_whatever_the_csv_module_writes_is_read_back_with_its_line(tmp_path_factory, cells, mark):
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=mark, quoting=csv.QUOTE_ALL)
    writer.writerow(["text", "label"])
    lines = []
    for cell in cells:
        lines.append(file.getvalue().count("\n") + 1)
        writer.writerow([cell, "x"])
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(file.getvalue().encode())
    problems: list[str] = []
    read = list(readers.READERS[".csv"](path, problems))
    assert read == [(n, {"text": c, "label": "x"}) for n, c in zip(lines, cells, strict=True)]
    assert not problems


@pytest.fixture(scope="module")
def tokenizer():
    from inputs import encoder as models

    return models.load_model("builtin", ["a", "b"], None)[1]


def make_text(tmp_path, texts: list[str], pairs: list[str] | None = None) -> data.LabelledText:
    header = "sentence1,sentence2,label\n" if pairs else "sentence,label\n"
    cells = zip(texts, pairs, strict=True) if pairs else ([text] for text in texts)
    rows = [",".join([*row, str(number % 2)]) + "\n" for number, row in enumerate(cells)]
    (tmp_path / "train.csv").write_text(header + "".join(rows))
    (tmp_path / "dev.csv").write_text(header + "".join(rows))
    return data.load(str(tmp_path))


@pytest.mark.parametrize("pair", [False, True])
def test_tokens_are_those_that_the_tokenizer_itself_gives(tmp_path, tokenizer, pair, capsys):
    texts = [text.replace(",", " ") for text, _ in ROWS]
    pairs = texts[::-1] if pair else None
    text = make_text(tmp_path, texts, pairs)
    tokens = data.tokenize(text.splits["train"], text.ids, tokenizer, 5, "train")
    expected = tokenizer(texts, pairs, truncation=True, max_length=5)
    keys = ["input_ids", "token_type_ids"] if pair else ["input_ids"]
    assert [tokens[i] for i in range(len(tokens))] == [
        {key: expected[key][i] for key in keys} | {"labels": i % 2} for i in range(len(texts))
    ]
    assert tokens.__getitems__([3, 1]) == [tokens[3], tokens[1]]
    assert tokens.lengths.tolist() == list(map(len, expected["input_ids"]))
    whole = tokenizer(texts, pairs)["input_ids"]
    cut = sum(len(ids) > 5 for ids in whole)
    assert (
        cut > 0
        and f"{cut} of {len(texts)} train sentences were cut to 5" in capsys.readouterr().err
    )


def test_the_same_data_is_never_tokenized_twice_whatever_was_done_with_the_tokenizer(tmp_path):
    from inputs import encoder as models

    def tokenize(max_length: int, side: str = "right") -> tuple[list, int, str]:
        """Both splits in a run of their own: their rows, calls of the tokenizer, and its file."""
        calls = []
        tokenizer = models.load_model("builtin", ["a", "b"], None)[1]
        tokenizer.truncation_side = side

        class Counting:
            def __getattr__(self, name):
                return getattr(tokenizer, name)

            def __call__(self, *arguments, **options):
                calls.append(1)
                return tokenizer(*arguments, **options)

        (tmp_path / "train.csv").write_text("text,label\n" + "never twice,0\nnot again,1\n" * 3)
        (tmp_path / "dev.csv").write_text("text,label\n" + "never a third time,0\nno,1\n" * 2)
        text = data.load(str(tmp_path))
        splits = [
            data.tokenize(rows, text.ids, Counting(), max_length, name)
            for name, rows in text.splits.items()
        ]
        models.save_model(SimpleNamespace(save_pretrained=print), tokenizer, tmp_path / "saved")
        file = (tmp_path / "saved" / "tokenizer.json").read_text()
        return [[split[i] for i in range(len(split))] for split in splits], len(calls), file

    first, calls, file = tokenize(20)
    assert calls == 2
    for _ in range(2):
        assert tokenize(20) == (first, 0, file)
    assert tokenize(3)[1] == 2  # Another length is other data.
    assert tokenize(20, side="left")[1] == 2  # So is another side.
