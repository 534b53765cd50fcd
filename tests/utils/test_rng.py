import itertools

import pytest
import torch

from robust_lr.utils import rng

ALL_ONES = 0xFFFFFFFF
# Random123's known answers for Philox4x32-10: counter, key, output
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ALL_ONES,) * 4, (ALL_ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
IDS = torch.arange(50)


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN)
def test_philox_gives_the_published_values(counter, key, output):
    words = rng.philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(map(int, words)) == output


def test_words_are_philox_blocks_of_block_purpose_and_id_under_the_seed():
    id_, seed, draw = (7 << 32) + 5, 3, 2
    key = (torch.tensor(seed), torch.tensor(0))
    counters = [(block, draw << 8 | rng.TARGET, 5, 7) for block in range(2)]
    blocks = [rng.philox(tuple(map(torch.tensor, counter)), key) for counter in counters]
    expected = [int(word) for block in blocks for word in block]
    assert rng.words(seed, rng.TARGET, torch.tensor([id_]), 8, draw).tolist() == [expected]


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 11])
def test_fewer_words_are_a_prefix_of_more(n):
    assert rng.words(1, rng.START, IDS, n).shape == (50, n)
    assert torch.equal(rng.words(1, rng.START, IDS, n), rng.words(1, rng.START, IDS, 12)[:, :n])


def test_no_ids_give_no_numbers():
    none = torch.arange(0)
    assert rng.uniform(0, rng.START, none, (1, 2, 2)).shape == (0, 1, 2, 2)
    assert rng.integers(0, rng.TARGET, none, 9).shape == (0,)


def test_numbers_do_not_depend_on_the_other_ids():
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    whole = rng.uniform(1, rng.START, IDS, (3, 5))
    assert torch.equal(rng.uniform(1, rng.START, IDS[order], (3, 5)), whole[order])
    assert torch.equal(rng.uniform(1, rng.START, IDS[::2], (3, 5)), whole[::2])


def test_seeds_streams_draws_and_ids_give_unrelated_numbers():
    high = torch.tensor([5, 5 + 2**32, 5 + 2**33, 2**62])
    drawn = [
        rng.uniform(seed, stream, ids, (64,), draw).flatten()
        for seed, stream, draw in itertools.product((0, 1, 2**31), range(4), (0, 1, 256))
        for ids in (torch.tensor([0, 1, 2, 3]), high)
    ]
    everything = torch.cat(drawn)
    # 18,432 numbers of 24 bits: about 10 pairs coincide by chance, one repeated row would add 64
    assert len(everything) - len(everything.unique()) < 40
    correlations = torch.corrcoef(torch.stack(drawn)) - torch.eye(len(drawn))
    assert correlations.abs().max() < 0.3  # 256 numbers a row: 4.8 standard deviations


def test_seeds_count_modulo_two_to_the_32():
    assert torch.equal(rng.words(-1, rng.START, IDS, 4), rng.words(2**32 - 1, rng.START, IDS, 4))
    assert torch.equal(rng.words(2**40 + 3, rng.START, IDS, 4), rng.words(3, rng.START, IDS, 4))


def test_uniform_fills_the_unit_interval_with_multiples_of_two_to_the_minus_24():
    u = rng.uniform(0, rng.START, torch.arange(1000), (10, 10))
    assert u.shape == (1000, 10, 10)
    assert u.dtype == torch.float32
    assert 0 <= u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1
    assert torch.equal(u * 2**24, (u * 2**24).round())
    assert ((u * 2**24) % 2 == 1).any()  # the lowest bit is used
    assert abs(u.mean() - 0.5) < 4 * (1 / 12 / u.numel()) ** 0.5
    counts = torch.histc(u, bins=20, min=0, max=1)
    assert ((counts - u.numel() / 20) ** 2 / (u.numel() / 20)).sum() < 43.8  # chi-square, 19 degrees, p = 0.001


@pytest.mark.parametrize("high", [1, 2, 9, 999])
def test_integers_are_uniform_over_their_range(high):
    drawn = rng.integers(0, rng.TARGET, torch.arange(20 * high + 5000), high)
    counts = torch.bincount(drawn, minlength=high)
    assert drawn.dtype == torch.int64
    assert len(counts) == high
    mean = len(drawn) / high
    chi_square = float(((counts - mean) ** 2 / mean).sum())
    assert chi_square < high - 1 + 4 * (2 * high) ** 0.5
