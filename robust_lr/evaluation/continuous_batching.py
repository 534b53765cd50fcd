"""Attack a stream of images: when an image is decided, the next one takes its place in the batch.

Every pass is therefore full until the images run out, however many steps each of them takes. From then on, images with
more steps left regularly replace those with fewer, so that all end at about the same time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from math import inf
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attacks.arguments import compare_with_ball
from ..attacks.losses import lead
from ..attacks.stepwise import SkipsRepeats, Stepwise, TestsProposals, constant
from ..protocols.base import StepwiseProtocol
from .batch_state import Rows, add_elapsed_time, join, size, split, split_first
from .cycle_end import ON, begin_columns, is_recorded, skip_periods
from .model_under_test import Bench, verify_bounds
from .step_graph import DelayedLook, GraphedStep, Step, record_cuda_graph

#: prefix of the columns that belong to the attack
STATE = "attack."

#: once no more images come, number of steps after which the places go to the images with the most steps left
TAKE_TURNS = 2


def attack_pool(part: StepwiseProtocol, number: int, source: Iterator[Rows], bench: Bench) -> Iterator[Rows]:
    """Attack the images of ``source`` and yield their rows as they are decided, in any order.

    Args:
        part: the protocol, or part ``number`` of a cascade.
        source: images to attack, with the columns of ``batch_state.initial_rows``; images that are already decided are
            passed on unchanged, with the next rows or once there are enough for a pass: each group that is yielded
            is a transaction of the ledger.
    """
    attack = part.stepwise(bench.seed)
    early = part.ends_at_success
    queue: Rows = {}  # waiting for their next draw
    returning: Rows = {}  # interrupted in the middle of a draw, waiting to resume it
    active: Rows = {}
    finished: Rows = {}  # waiting for their verdict
    passed: Rows = {}  # not attacked, because they were decided before
    ends = torch.empty(0, dtype=torch.int64)  # turn at which each active row ends, known without asking the device
    numbers = torch.empty(0, dtype=torch.int64)  # of the active rows, in the order in which they joined
    joined, delayed = 0, DelayedLook() if bench.graphs else None
    is_dry, since = False, 0  # whether no more images come, and the turn of the last replacement
    take_turns = bench.fixed and not bench.sizes and bench.randomness is None  # elsewhere smaller passes take less time
    advance: Step = partial(advance_one_step, part, attack, bench=bench)
    if bench.graphs and attack.needs_gradient:  # searches without a gradient read what they drew on the host
        advance = GraphedStep(advance, record_cuda_graph)
    turn = 0
    room = bench.rows * bench.passes_per_step
    most = room + (bench.waiting if take_turns else 0)
    columns: list[str] = []
    while True:
        while size(finished) < bench.rows and size(active) + size(returning) + size(queue) < most:
            if (group := next(source, None)) is None:
                is_dry = True
                break
            began = time.perf_counter()
            columns, mask = list(group), group["decided"].cpu()
            done, todo = split(add_elapsed_time(group, began), mask)
            queue = join([queue, {**todo, "draw": torch.zeros_like(todo["id"])} if todo else {}])
            passed = join([passed, done])
            if size(passed) >= bench.rows:
                yield passed
                passed = {}
        began = time.perf_counter()
        resumed, returning = split_first(returning, room - size(active))
        fresh, queue = split_first(queue, room - size(active) - size(resumed))
        fresh = add_elapsed_time(begin_next_draw(part, attack, fresh, bench), began) if fresh else {}
        began = time.perf_counter()
        for rows in (resumed, fresh):
            if rows:
                active = join([active, rows])
                ends = torch.cat([ends, turn + attack.steps - rows["step"].cpu()])
                numbers = torch.cat([numbers, torch.arange(joined, joined + size(rows))])
                joined += size(rows)
        if size(finished) >= bench.rows or (finished and not active):
            verdicts, finished = split_first(finished, bench.rows)
            verdicts = judge_finished_images(part, number, verdicts, bench)
            is_unsure = verdicts.pop("unsure").cpu()
            over = (verdicts["decided"] | (verdicts["draw"] >= part.draws(bench.num_classes))).cpu()
            unsure, sure = split(add_elapsed_time(verdicts, began), is_unsure)
            returning = join([returning, unsure])
            if sure:
                sure = {name: sure[name] for name in columns}
                done, again = split(sure, over[~is_unsure])
                queue = join([queue, again])
                if done:
                    yield join([passed, done])
                    passed = {}
            continue
        if not active:
            if passed:
                yield passed
            return
        ending = ends <= turn
        if early and turn % bench.patience == 0:
            ending |= delayed.look(active["decided"], numbers) if delayed else active["decided"].cpu()
        if ending.any():
            # on a GPU, reading `ending` has waited for the steps, so the time includes them
            ended, active = split(add_elapsed_time(active, began), ending)
            finished, ends, numbers = join([finished, ended]), ends[~ending], numbers[~ending]
        elif take_turns and is_dry and (queue or returning) and turn >= since + TAKE_TURNS:
            fresh = begin_next_draw(part, attack, queue, bench) if queue else {}
            waiting = join([active, returning, fresh])
            waiting = sort_by_steps_left(waiting, attack.steps, part.draws(bench.num_classes))
            returning = add_elapsed_time(waiting, began)
            active, queue, ends, numbers, since = {}, {}, ends[:0], numbers[:0], turn
        else:
            active, turn = add_elapsed_time(advance(active), began), turn + 1
            if bench.cycles == ON or skips_repeats(attack, bench):
                ends = turn + attack.steps - active["step"]


def skips_repeats(attack: Stepwise, bench: Bench) -> TypeGuard[SkipsRepeats]:
    """Return True if queries with a known answer are not shown to the model: to a deterministic one, on a CPU.

    On a GPU, finding them would make the host wait in every step.
    """
    return isinstance(attack, SkipsRepeats) and bench.randomness is None and bench.patience == 1


def begin_next_draw(part: StepwiseProtocol, attack: Stepwise, rows: Rows, bench: Bench) -> Rows:
    """Prepare ``rows`` for the first step of their next draw."""
    start = part.starts(rows["x"], rows["id"], seed=bench.seed, draw=rows["draw"])
    state = attack.begin(rows["x"], start, rows["id"], rows["draw"])
    away, toward = part.classes(rows)
    step = torch.zeros_like(rows["id"])
    return {
        **rows,
        **{STATE + name: column for name, column in state.items()},
        **(begin_columns(attack, state, step) if bench.cycles == ON else {}),
        "away": away,
        "toward": toward,
        "step": step,
        "final": rows["x"],
        "before": rows["first_wrong"],
    }


def sort_by_steps_left(rows: Rows, steps: int, draws: int) -> Rows:
    """Sort ``rows`` by the number of steps that they may still take in ``draws`` draws, the most first."""
    left = (draws - rows["draw"]) * steps - rows["step"]
    order = left.argsort(descending=True, stable=True)
    return {name: column[order] for name, column in rows.items()}


def advance_one_step(part: StepwiseProtocol, attack: Stepwise, rows: Rows, bench: Bench) -> Rows:
    """Take one step with every row: query the model, record the answer, and choose the next query."""
    state = {name[len(STATE) :]: column for name, column in rows.items() if name.startswith(STATE)}
    targets = rows["toward"] if part.objective_takes_targets else None
    with bench.precision(), bench.name_failing_image(rows["x"], rows["id"]):
        logits, loss, gradient = bench.evaluate_query(part, state["query"], rows, targets, attack.needs_gradient)
    undecided = ~rows["decided"]
    noted, reached = record_query(part, rows, state["query"], logits, undecided & (bench.surrogate is None))
    if attack.needs_gradient:
        noted["zero_gradients"] = rows["zero_gradients"] + undecided * (gradient == 0).flatten(1).all(1)
    forwards, backwards = bench.passes_per_query(part)
    noted["forwards"] = rows["forwards"] + forwards * undecided
    noted["backwards"] = rows["backwards"] + backwards * undecided * attack.needs_gradient
    state = attack.advance(rows["x"], state, rows["step"], loss, gradient, reached)
    rows = {**rows, **noted}
    if isinstance(attack, TestsProposals):
        undecided = ~rows["decided"]
        with bench.precision():
            logits = bench.query(state["query"])
        after = {**rows, "step": rows["step"] + 1}
        noted, reached = record_query(part, after, state["query"], logits, undecided)
        state = attack.settle(rows["x"], state, reached)
        rows = {**rows, **noted, "forwards": rows["forwards"] + undecided}
    step = rows["step"] + 1
    if skips_repeats(attack, bench):
        state, skipped = attack.skip_repeats(rows["x"], state, step)
        step = step + skipped
    rows = {**rows, **{STATE + name: c for name, c in state.items()}, "step": step}
    return skip_periods(part, attack, rows, state)


def judge_finished_images(part: StepwiseProtocol, number: int, rows: Rows, bench: Bench) -> Rows:
    """Judge finished images by the model itself: last iterates, or queries that the attacked model called a success.

    An image whose success the model does not confirm is ``unsure``; its attack resumes where it stopped.
    """
    final = part.final(rows["x"], rows[f"{STATE}query"], rows.get(f"{STATE}best"))
    if part.ends_at_success:
        final = torch.where(rows["decided"].view(-1, 1, 1, 1), rows["final"], final)
    distance = verify_bounds(rows["x"], final, rows["id"], inf if part.finds_distances else part.eps, part.norm)
    passes = bench.verdict_logits(final, rows["id"], rows["forwards"])
    logits = select_hardest_pass(passes, -lead_in_each_pass(passes, rows["label"]))
    aimed = select_hardest_pass(passes, lead_in_each_pass(passes, rows["target"])) if part.targeted else logits
    noted, _, reached = record_logits(part, rows, final, logits, ~rows["decided"], aimed)
    if part.finds_distances:  # only the nearest adversarial image counts, as the model itself sees it
        noted["first_wrong"] = torch.where(reached, noted["first_wrong"], -1)
        noted["first_success"] = torch.where(reached, noted["first_success"], -1)
    right = ~reached if not part.stays_in_ball else logits.argmax(1) == rows["label"]
    loss = F.cross_entropy(logits, rows["label"], reduction="none")
    unsure = rows["decided"] & ~reached
    broke = reached & ~rows["success"]
    if bench.keep_images:
        noted["finished"] = torch.where(rows["robust_last"].view(-1, 1, 1, 1), final, rows["finished"])
    if part.targeted:
        target_loss = F.cross_entropy(aimed, rows["target"], reduction="none")
        noted["target_loss"] = torch.where(rows["robust_last"], target_loss, rows["target_loss"])
    if "wrong_passes" in rows:
        wrong = (passes.argmax(2) != rows["label"]).sum(0)
        noted["wrong_passes"] = torch.where(rows["robust_last"], wrong, rows["wrong_passes"])
    return {
        **rows,
        **noted,
        # an unconfirmed success leaves no trace
        "first_wrong": torch.where(unsure, rows["before"], noted["first_wrong"]),
        "first_success": torch.where(unsure, -1, noted["first_success"]),
        "decided": reached if part.ends_at_success else rows["decided"],
        "unsure": unsure,
        "unconfirmed": rows["unconfirmed"] + unsure,
        "adversarial": torch.where(rows["robust_last"], logits.argmax(1), rows["adversarial"]),
        "loss": torch.where(rows["robust_last"], loss, rows["loss"]),
        "lead": torch.where(
            rows["robust_last"], torch.minimum(rows["lead"], lead(logits, rows["label"])), rows["lead"]
        ),
        "robust_last": rows["robust_last"] & (right | unsure),
        "success": rows["success"] | reached,
        "part": torch.where(broke, number, rows["part"]),
        "distance": torch.maximum(rows["distance"], distance),
        "forwards": rows["forwards"] + len(passes),
        "draw": rows["draw"] + ~unsure,
    }


def lead_in_each_pass(passes: Tensor, classes: Tensor) -> Tensor:
    """Return by how much the logits of ``classes`` [N] exceed the best other logit in each pass, [passes, N]."""
    return torch.stack([lead(logits, classes) for logits in passes])


def select_hardest_pass(passes: Tensor, score: Tensor) -> Tensor:
    """Return, for each image, the logits of the pass with the largest score.

    Args:
        passes: logits [passes, N, classes].
        score: [passes, N].
    """
    return passes[score.argmax(0), torch.arange(passes.shape[1], device=passes.device)]


def record_query(
    part: StepwiseProtocol, rows: Rows, query: Tensor, logits: Tensor, undecided: Tensor
) -> tuple[Rows, Tensor]:
    """Record the logits of a query; where a first success ends the attack, decide the image and keep the query."""
    noted, reached, counts = record_logits(part, rows, query, logits, undecided)
    if part.ends_at_success:
        now = undecided & counts
        noted["final"] = torch.where(now.view(-1, 1, 1, 1), query, rows["final"])
        noted["decided"] = rows["decided"] | now
        noted["before"] = torch.where(now, rows["first_wrong"], rows["before"])
    return noted, reached


def record_logits(
    part: StepwiseProtocol, rows: Rows, query: Tensor, logits: Tensor, undecided: Tensor, aimed: Tensor | None = None
) -> tuple[Rows, Tensor, Tensor]:
    """Record what the logits show; return which queries reach the attack's aim and which of those count, [N] bool.

    Queries of an attack that may leave the ball count only inside it. ``aimed``, if given, are the logits that decide
    whether the target is reached.
    """
    step = rows["step"]
    right = logits.argmax(1) == rows["label"]
    reached = (logits if aimed is None else aimed).argmax(1) == rows["target"] if part.targeted else ~right
    counts = reached
    if not part.stays_in_ball:
        inside = compare_with_ball(rows["x"], query, part.eps, part.norm)[1]
        right, counts = right | ~inside, reached & inside

    def first_step(column: Tensor, now: Tensor) -> Tensor:
        return torch.where(undecided & now & ((column < 0) | (step < column)), step, column)

    noted = {
        "margin": torch.where(undecided, torch.minimum(rows["margin"], lead(logits, rows["label"])), rows["margin"]),
        "first_wrong": first_step(rows["first_wrong"], ~right),
        "first_success": first_step(rows["first_success"], counts),
    }
    if part.record and part.criterion == "last":
        elsewhere = ~is_recorded(rows, constant(part.record, step.dtype, step.device), part.steps)
        noted["right_at"] = rows["right_at"] & (right[:, None] | elsewhere)
        noted["reached_at"] = rows["reached_at"] | (reached[:, None] & ~elsewhere)
    return noted, reached, counts
