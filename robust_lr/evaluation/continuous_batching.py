"""An attack on a stream of images: places in the batch that decided images leave are given to the next ones.

So every pass is full until the images run out, whatever the number of steps that each of them takes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attacks.arguments import within
from ..attacks.losses import lead
from ..attacks.stepwise import Stepwise, TestsProposals, constant
from ..protocols.base import StepwiseProtocol
from .batch_state import Rows, first, join, size, split, timed
from .cycle_end import ON, begin_columns, is_recorded, skip_periods
from .model_under_test import Bench, verified

#: prefix of the columns that belong to the attack
STATE = "attack."


def attack_pool(part: StepwiseProtocol, number: int, source: Iterator[Rows], bench: Bench) -> Iterator[Rows]:
    """The rows of ``source`` once they are decided, in any order.

    Args:
        part: the protocol, or part ``number`` of a cascade.
        source: images to attack, with the columns of ``batch_state.initial_rows``; those decided already are passed on.
    """
    attack = part.stepwise(bench.seed)
    early = part.ends_at_success
    queue: Rows = {}  # waits for its next draw
    returning: Rows = {}  # waits in the middle of one
    flying: Rows = {}
    landed: Rows = {}  # waits for the verdict
    due = torch.empty(0, dtype=torch.int64)  # turns at which the flying land, known without asking the device
    turn = 0
    columns: list[str] = []
    while True:
        while size(landed) < bench.rows and size(flying) + size(returning) + size(queue) < bench.rows:
            if (group := next(source, None)) is None:
                break
            began = time.perf_counter()
            columns, mask = list(group), group["decided"].cpu()
            done, todo = split(timed(group, began), mask)
            queue = join([queue, {**todo, "draw": torch.zeros_like(todo["id"])} if todo else {}])
            if done:
                yield done
        began = time.perf_counter()
        back, returning = first(returning, bench.rows - size(flying))
        fresh, queue = first(queue, bench.rows - size(flying) - size(back))
        fresh = timed(begun(part, attack, fresh, bench), began) if fresh else {}
        began = time.perf_counter()
        for rows in (back, fresh):
            if rows:
                flying = join([flying, rows])
                due = torch.cat([due, turn + attack.steps - rows["step"].cpu()])
        if size(landed) >= bench.rows or (landed and not flying):
            verdicts, landed = first(landed, bench.rows)
            verdicts = judged(part, number, verdicts, bench)
            doubted = verdicts.pop("unsure").cpu()
            over = (verdicts["decided"] | (verdicts["draw"] >= part.draws(bench.num_classes))).cpu()
            unsure, sure = split(timed(verdicts, began), doubted)
            returning = join([returning, unsure])
            if sure:
                sure = {name: sure[name] for name in columns}
                done, again = split(sure, over[~doubted])
                queue = join([queue, again])
                if done:
                    yield done
            continue
        if not flying:
            return
        landing = due <= turn
        if early and turn % bench.patience == 0:
            landing |= flying["decided"].cpu()
        if landing.any():
            down, flying = split(timed(flying, began), landing)  # on a GPU, the look at them waited for their steps
            landed, due = join([landed, down]), due[~landing]
        else:
            flying, turn = timed(flown(part, attack, flying, bench), began), turn + 1
            if bench.cycles == ON:
                due = turn + attack.steps - flying["step"]


def begun(part: StepwiseProtocol, attack: Stepwise, rows: Rows, bench: Bench) -> Rows:
    """``rows`` before the first step of their next draw."""
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


def flown(part: StepwiseProtocol, attack: Stepwise, rows: Rows, bench: Bench) -> Rows:
    """One step of every row: a query to the model, what it tells, and the next query."""
    n = size(rows)
    wide = bench.rows_for(n)
    rows = {name: bench.padded(column, wide) for name, column in rows.items()}
    state = {name[len(STATE) :]: column for name, column in rows.items() if name.startswith(STATE)}
    targets = rows["toward"] if part.objective_takes_targets else None
    with bench.precision(), bench.failures_named(rows["x"][:n], rows["id"][:n]):
        logits, loss, gradient = bench.look(part, state["query"], rows, targets, attack.needs_gradient)
    undecided = ~rows["decided"]
    noted, reached = note_query(part, rows, state["query"], logits, undecided & (bench.surrogate is None))
    if attack.needs_gradient:
        noted["zero_gradients"] = rows["zero_gradients"] + undecided * (gradient == 0).flatten(1).all(1)
    forwards, backwards = bench.passes(part)
    noted["forwards"] = rows["forwards"] + forwards * undecided
    noted["backwards"] = rows["backwards"] + backwards * undecided * attack.needs_gradient
    state = attack.advance(rows["x"], state, rows["step"], loss, gradient, reached)
    rows = {**rows, **noted}
    if isinstance(attack, TestsProposals):
        undecided = ~rows["decided"]
        with bench.precision(), torch.no_grad():
            logits = bench.attacked(state["query"])
        after = {**rows, "step": rows["step"] + 1}
        noted, reached = note_query(part, after, state["query"], logits, undecided)
        state = attack.settle(rows["x"], state, reached)
        rows = {**rows, **noted, "forwards": rows["forwards"] + undecided}
    rows = {**rows, **{STATE + name: c for name, c in state.items()}, "step": rows["step"] + 1}
    rows = {name: column[:n] for name, column in rows.items()}
    return skip_periods(part, attack, rows, {name: column[:n] for name, column in state.items()})


def judged(part: StepwiseProtocol, number: int, rows: Rows, bench: Bench) -> Rows:
    """Verdicts on finished images by the model itself: last iterates, or what the attacked model called a success.

    A success that the model does not confirm is ``unsure`` and goes on where it was.
    """
    final = part.final(rows["x"], rows[f"{STATE}query"], rows.get(f"{STATE}best"))
    if part.ends_at_success:
        final = torch.where(rows["decided"].view(-1, 1, 1, 1), rows["final"], final)
    distance = verified(rows["x"], final, rows["id"], inf if part.finds_distances else part.eps, part.norm)
    passes = bench.verdicts(final, rows["id"], rows["forwards"])
    logits = hardest(passes, -lead_of(passes, rows["label"]))
    aimed = hardest(passes, lead_of(passes, rows["target"])) if part.targeted else logits
    noted, _, reached = note(part, rows, final, logits, ~rows["decided"], aimed)
    if part.finds_distances:  # what counts is the nearest adversarial image, as the model itself sees it
        noted["first_wrong"] = torch.where(reached, noted["first_wrong"], -1)
        noted["first_success"] = torch.where(reached, noted["first_success"], -1)
    right = ~reached if not part.stays_in_ball else logits.argmax(1) == rows["label"]
    loss = F.cross_entropy(logits, rows["label"], reduction="none")
    unsure = rows["decided"] & ~reached
    broke = reached & ~rows["success"]
    if bench.keep_images:
        noted["finished"] = torch.where(rows["robust_last"].view(-1, 1, 1, 1), final, rows["finished"])
    if "wrong_passes" in rows:
        wrong = (passes.argmax(2) != rows["label"]).sum(0)
        noted["wrong_passes"] = torch.where(rows["robust_last"], wrong, rows["wrong_passes"])
    return {
        **rows,
        **noted,
        # what is not confirmed did not happen
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


def lead_of(passes: Tensor, classes: Tensor) -> Tensor:
    """By how much the logits of ``classes`` [N] exceed the best of the others in each pass, [passes, N]."""
    return torch.stack([lead(logits, classes) for logits in passes])


def hardest(passes: Tensor, score: Tensor) -> Tensor:
    """Of logits [passes, N, classes], those of the pass with the largest score [passes, N], for each image."""
    return passes[score.argmax(0), torch.arange(passes.shape[1], device=passes.device)]


def note_query(
    part: StepwiseProtocol, rows: Rows, query: Tensor, logits: Tensor, undecided: Tensor
) -> tuple[Rows, Tensor]:
    """Do as ``note``; an image whose first success ends the attack is then decided, and its query kept as ``final``."""
    noted, reached, counts = note(part, rows, query, logits, undecided)
    if part.ends_at_success:
        now = undecided & counts
        noted["final"] = torch.where(now.view(-1, 1, 1, 1), query, rows["final"])
        noted["decided"] = rows["decided"] | now
        noted["before"] = torch.where(now, rows["first_wrong"], rows["before"])
    return noted, reached


def note(
    part: StepwiseProtocol, rows: Rows, query: Tensor, logits: Tensor, undecided: Tensor, aimed: Tensor | None = None
) -> tuple[Rows, Tensor, Tensor]:
    """Record what the logits tell; return which queries are at the attack's aim and which of those count, [N] bool.

    Queries of an attack that does not stay in the ball count where they are inside. ``aimed`` are the logits that tell
    whether the target is reached, where they are others.
    """
    step = rows["step"]
    right = logits.argmax(1) == rows["label"]
    reached = (logits if aimed is None else aimed).argmax(1) == rows["target"] if part.targeted else ~right
    counts = reached
    if not part.stays_in_ball:
        inside = within(rows["x"], query, part.eps, part.norm)[1]
        right, counts = right | ~inside, reached & inside

    def since(column: Tensor, now: Tensor) -> Tensor:
        return torch.where(undecided & now & ((column < 0) | (step < column)), step, column)

    noted = {
        "margin": torch.where(undecided, torch.minimum(rows["margin"], lead(logits, rows["label"])), rows["margin"]),
        "first_wrong": since(rows["first_wrong"], ~right),
        "first_success": since(rows["first_success"], counts),
    }
    if part.record and part.criterion == "last":
        elsewhere = ~is_recorded(rows, constant(part.record, step.dtype, step.device), part.steps)
        noted["right_at"] = rows["right_at"] & (right[:, None] | elsewhere)
        noted["reached_at"] = rows["reached_at"] | (reached[:, None] & ~elsewhere)
    return noted, reached, counts
