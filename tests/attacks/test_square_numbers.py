"""Random numbers of the Square attack: drawn ahead, they are those of every query by itself."""

import torch

from robust_lr.attacks.square_lp import AHEAD, begin_number_buffer, draw_numbers
from robust_lr.utils.rng import SEARCH, uniform


def test_numbers_drawn_ahead_are_those_of_each_query():
    """Also where images are at different queries of different restarts, as in a batch whose places are given on."""
    steps, count = 100, 6
    ids, draws = torch.tensor([3, 1, 7]), torch.tensor([0, 2, 1])
    state = {"ids": ids, "draws": draws, **begin_number_buffer(torch.zeros(3, 1, 4, 4), count)}
    offset = torch.tensor([0, 5, AHEAD])
    for query in range(AHEAD + 5):  # the second image begins five queries later
        step = (query - offset).clamp_min(0)
        drawn, ahead = draw_numbers(state, step, 9, steps, count)
        state = {**state, **ahead}
        assert torch.equal(drawn, uniform(9, SEARCH, ids, (count,), draws * (steps + 1) + 1 + step))
