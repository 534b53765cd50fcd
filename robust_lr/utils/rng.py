"""Counter-based random numbers: every number is a pure function of (seed, stream, image id, draw).

The generator is Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") in integer tensor
arithmetic. Starts, targets and augmentations are bit-identical on any device and for any batch size, order or shard,
and after resuming.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, prod

import torch
from torch import Tensor

# Streams of random numbers, one for each purpose; they never overlap.
START, TARGET, AUGMENT, ORDER, RADIUS, SEARCH, CHOICE, HELD_OUT, GUARD, PROBE, MODEL = range(11)

#: upper bound of ``draw``, the index of a restart or an epoch
DRAWS = 2**24

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Apply ten rounds of Philox 4x32. All words are broadcastable int64 tensors with values in [0, 2^32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap modulo 2^64, so both 32-bit halves are correct
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32) & _LOW ^ c1 ^ k0, p1 & _LOW, (p0 >> 32) & _LOW ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def words(seed: int, stream: int, ids: Tensor, n: int, draw: int | Tensor = 0) -> Tensor:
    """Return ``n`` random 32-bit words for each id: [len(ids), n] int64 with values in [0, 2^32).

    Args:
        seed: any Python integer; only its low 32 bits are used.
        stream: purpose of the numbers, one of the constants above.
        ids: image ids, [N] int64, non-negative.
        draw: index of the restart or epoch, below ``DRAWS``; one for all ids, or one each, [N] int64.
    """
    ids = ids.view(-1, 1)
    blocks = torch.arange((n + 3) // 4, device=ids.device).view(1, -1)
    purpose = torch.as_tensor(draw, device=ids.device).view(-1, 1) << 8 | stream
    counter = (blocks.expand(len(ids), -1), purpose, ids & _LOW, (ids >> 32) & _LOW)
    seed_word = torch.full_like(blocks, seed & _LOW)
    out = torch.stack(philox(counter, (seed_word, torch.zeros_like(seed_word))), dim=-1)
    return out.flatten(1)[:, :n]


def uniform(seed: int, stream: int, ids: Tensor, shape: Sequence[int], draw: int | Tensor = 0) -> Tensor:
    """Draw uniform numbers in [0, 1), [len(ids), *shape] float32, exact multiples of 2^-24."""
    bits = words(seed, stream, ids, prod(shape), draw) >> 8
    return (bits.to(torch.float32) * 2.0**-24).view(len(ids), *shape)


def normal(seed: int, stream: int, ids: Tensor, shape: Sequence[int], draw: int | Tensor = 0) -> Tensor:
    """Draw normal numbers, [len(ids), *shape] float32 (Box and Muller 1958); rounding depends on the device."""
    n = prod(shape)
    bits = words(seed, stream, ids, 2 * n, draw) >> 8
    radius = (-2 * ((bits[:, :n] + 1).to(torch.float64) * 2.0**-24).log()).sqrt()
    angle = (2 * pi * 2.0**-24) * bits[:, n:].to(torch.float64)
    return (radius * angle.cos()).to(torch.float32).view(len(ids), *shape)


def integers(seed: int, stream: int, ids: Tensor, high: int, draw: int | Tensor = 0) -> Tensor:
    """Draw one integer in [0, high) for each id, [len(ids)] int64; the bias is below high / 2^32."""
    return (words(seed, stream, ids, 1, draw)[:, 0] * high) >> 32
