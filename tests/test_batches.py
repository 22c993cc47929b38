"""Batches hold each sentence once, with little padding, in an order that depends on the seed."""

import itertools
import json

import numpy as np
import pytest
import torch
from harness.helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st

from inputs.batches import (
    MAX_TOKENS_ON_CPU,
    collate,
    epoch_batches,
    limits,
    share_out,
    sorted_batches,
)
from system import ranks
from system.randomness import dropout_seed, generator

# Entry n is the number of SST-2 training sentences with n tokens (bert-base-uncased).
SST2_LENGTHS = json.loads((ROOT / "benchmarks" / "sst2_lengths.json").read_text())
LENGTHS = st.lists(st.integers(1, 70), min_size=1, max_size=300).map(np.array)


@given(LENGTHS, st.integers(1, 40), st.integers(0, 2**64 - 1), st.integers(0, 5))
def test_each_sentence_comes_once_an_epoch_and_one_batch_is_smaller(lengths, size, seed, epoch):
    for batches in (
        epoch_batches(lengths, size, seed, epoch),
        sorted_batches(lengths, size),
    ):
        assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
        assert sorted(map(len, batches), reverse=True)[:-1] == [size] * (len(batches) - 1)
        assert len(batches) == -(-len(lengths) // size)


def test_the_order_of_an_epoch_depends_only_on_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(3, 60, 1000)

    def order(*arguments: int) -> list:
        return np.concatenate(epoch_batches(lengths, 32, *arguments)).tolist()

    first = order(42, 0)
    torch.manual_seed(7)
    np.random.seed(7)
    assert order(42, 0) == first
    assert order(42, 1) != first != order(43, 0)


def test_no_part_of_an_epoch_holds_only_long_sentences():
    lengths = np.random.default_rng(0).integers(3, 60, 20_000)
    batches = epoch_batches(lengths, 32, 42, 0)
    means = np.array([lengths[batch].mean() for batch in batches])
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.1
    assert np.std([lengths[batch].std() for batch in batches]) < lengths.std() / 4


@pytest.mark.parametrize("batch_size", [16, 32])
def test_padding_is_under_5_percent_of_the_computed_tokens_of_sst2(batch_size):
    lengths = np.repeat(np.arange(len(SST2_LENGTHS)), SST2_LENGTHS)
    assert len(lengths) == 67_349
    computed_tokens = sum(
        len(batch) * lengths[batch].max() for batch in epoch_batches(lengths, batch_size, 42, 0)
    )
    share = 1 - lengths.sum() / computed_tokens
    print(f"padding at batch {batch_size}: {share:.2%}")
    assert share < 0.05


def test_batches_of_small_data_mix_different_sentences_in_each_epoch():
    lengths = np.random.default_rng(0).integers(3, 60, 700)

    def pairs(epoch: int) -> set[tuple[int, int]]:
        batches = epoch_batches(lengths, 32, 42, epoch)
        return {
            (a, b) for batch in batches for a in batch.tolist() for b in batch.tolist() if a < b
        }

    assert len(pairs(0) & pairs(1)) < 0.3 * len(pairs(0))


def test_evaluation_begins_with_the_longest_sentences():
    lengths = np.random.default_rng(0).integers(3, 60, 700)
    in_order = lengths[np.concatenate(sorted_batches(lengths, 32))]
    assert (np.diff(in_order) <= 0).all()


@given(
    st.lists(st.lists(st.integers(1, 99), min_size=1), min_size=1),
    st.none() | st.integers(1, 8),
    st.integers(1, 200),
    st.sampled_from([1, 8]),
)
def test_micro_batches_keep_all_tokens_and_pad_only_to_their_longest_sentence(
    rows, micro_batch_size, max_tokens, multiple
):
    encoded = [
        {"input_ids": row, "token_type_ids": [1] * len(row), "labels": number}
        for number, row in enumerate(rows)
    ]
    batches = collate(encoded, 0, micro_batch_size, max_tokens, multiple)
    longest = max(map(len, rows))
    decoded = []
    for batch in batches:
        assert 1 <= len(batch["labels"]) <= (micro_batch_size or len(rows))
        assert micro_batch_size or len(batch["labels"]) * longest <= max(max_tokens, longest)
        assert batch["input_ids"].shape == batch["attention_mask"].shape
        assert torch.equal(batch["token_type_ids"], batch["attention_mask"])
        length, width = batch["attention_mask"].sum(1).max(), batch["input_ids"].shape[1]
        assert length <= width < length + multiple and width % multiple == 0
        for ids, mask, label in zip(
            *(batch[key] for key in ("input_ids", "attention_mask", "labels")), strict=True
        ):
            assert ids[mask == 0].eq(0).all()
            assert mask.tolist() == sorted(mask.tolist(), reverse=True)
            tokens = ids[mask == 1].tolist()
            decoded.append(
                {"input_ids": tokens, "token_type_ids": [1] * len(tokens), "labels": int(label)}
            )
    assert decoded == encoded


def test_only_a_cpu_limits_tokens_and_only_cuda_pads_to_multiples_of_8():
    assert limits("cpu", 512) == (MAX_TOKENS_ON_CPU, 1) and MAX_TOKENS_ON_CPU == 1024
    assert limits("cuda", 512)[1] == 8 and limits("cuda", 510)[1] == 1 == limits("mps", 512)[1]
    assert limits("cuda", 512)[0] == limits("mps", 512)[0] > 2**60


# ---- Random numbers ----


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**9))
def test_random_numbers_depend_only_on_seed_purpose_and_step(seed, step):
    first = generator(seed, "order", step).integers(2**63, size=4).tolist()
    np.random.seed(7)
    assert generator(seed, "order", step).integers(2**63, size=4).tolist() == first
    for other in (
        generator((seed + 1) % 2**64, "order", step),
        generator(seed, "subset", step),
        generator(seed, "order", step + 1),
    ):
        assert other.integers(2**63, size=4).tolist() != first


def test_dropout_has_a_different_seed_in_each_step_and_process(monkeypatch):
    seeds = {dropout_seed(seed, step) for seed in (1, 2) for step in range(100)}
    assert dropout_seed(1, 7) == dropout_seed(1, 7) and len(seeds) == 200
    for rank in (1, 2):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        seeds |= {dropout_seed(seed, step) for seed in (1, 2) for step in range(100)}
    assert len(seeds) == 600 and all(0 <= seed < 2**63 for seed in seeds)


@given(st.lists(st.integers(1, 512), min_size=1, max_size=200).map(np.array), st.integers(1, 16))
def test_each_sentence_of_a_batch_goes_to_one_process_and_tokens_are_shared_evenly(lengths, count):
    shares = share_out(lengths, count)
    assert len(shares) == count
    assert sorted(np.concatenate(shares)) == list(range(len(lengths)))
    tokens = [int(lengths[share].sum()) for share in shares]
    assert max(tokens) - min(tokens) <= 2 * lengths.max()
    # A share holds sentences of similar length, so that it needs little padding.
    ends = [(lengths[share].min(), lengths[share].max()) for share in shares if len(share)]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ends))


def test_a_single_process_keeps_the_order_of_a_batch():
    (share,) = share_out(np.array([9, 3, 5, 3]), 1)
    assert share.tolist() == [0, 1, 2, 3]
