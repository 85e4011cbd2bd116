"""From a contest to shares that are there in any case: the program's, or the last ones.

A program may find no answer: its numbers defeat the solver, or time runs out. Then the shares
of its last answer hold on, for the jobs that were there; who is new has the equal share, and
all are cut down to what is there now. Without a last answer everybody has the equal share.

The last answer is data: a snapshot brings it (`Snapshot.granted`), and a decision hands it on
(`Plan.granted`). A program that reads nothing that changes with time is not asked the same
question twice; what it would say is known.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from policies.contest import Array, Contest, Grant, ShareProgram
from scheduler.core.plan import Granted
from scheduler.core.snapshot import Snapshot

NEVER = Granted(status="none", solved_at_s=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Shares to be realised, what to hand on, and what there is to say."""

    fractions: Array
    granted: Granted
    notes: Mapping[int, str] = field(default_factory=dict)  # by job row of the snapshot
    excuse: str = ""


def scope_of(snapshot: Snapshot) -> str:
    """Return the name under which answers are handed on: the queue that is ruled, or none."""
    number = snapshot.scope.queue if snapshot.scope is not None else None
    queue = snapshot.queues[number] if number is not None else None
    return "" if queue is None else queue.name


def answered(
    snapshot: Snapshot,
    contest: Contest,
    program: ShareProgram,
    *,
    is_timeless: bool = False,
    time_limit_s: float | None = None,
) -> Answer:
    """Ask the program, unless what it would say is known; fall back if it has no answer.

    A timeless program reads nothing of a contest that changes by itself.
    """
    last = snapshot.granted.get(scope_of(snapshot), NEVER)
    question = _question(contest) if is_timeless else b""
    if question and question == last.question:
        granted = replace(last, job_ids=contest.job_ids)
        return Answer(fractions=last.fractions, granted=granted)
    contest = replace(contest, time_limit_s=time_limit_s, kept=last.kept)
    grant = _asked(program, contest)
    if not grant.is_solved:
        return _fallen_back(contest, last, grant.status, now_s=snapshot.now_s)
    prices = np.zeros(len(contest.capacity)) if grant.prices is None else grant.prices
    granted = Granted(
        status=grant.status,
        solved_at_s=snapshot.now_s,
        job_ids=contest.job_ids,
        gpu_types=contest.gpu_types,
        fractions=grant.fractions,
        prices=tuple(prices.tolist()),
        question=question,
        kept=grant.kept,
    )
    notes = {int(contest.rows[job]): note for job, note in grant.notes.items()}
    return Answer(fractions=grant.fractions, granted=granted, notes=notes)


def _asked(program: ShareProgram, contest: Contest) -> Grant:
    try:
        answer = program(contest)
    except (ValueError, ArithmeticError) as error:
        nothing = np.full(contest.speeds.shape, np.nan)
        return Grant(fractions=nothing, status=f"failed: {error}")
    grant = answer if isinstance(answer, Grant) else Grant(fractions=answer)
    if grant.status == "optimal" and not np.isfinite(grant.fractions).all():
        return replace(grant, status="numerical difficulties")
    return grant


def _fallen_back(contest: Contest, last: Granted, status: str, *, now_s: float) -> Answer:
    known = {job_id: row for row, job_id in enumerate(last.job_ids)}
    column = {name: k for k, name in enumerate(last.gpu_types)}
    equal = contest.capacity / max(contest.gpus.sum(), contest.capacity.sum())
    fractions = np.tile(equal, (len(contest.gpus), 1))
    rows = np.array([known.get(job_id, -1) for job_id in contest.job_ids], np.intp)
    of_type = np.array([column.get(name, -1) for name in contest.gpu_types], np.intp)
    had = np.flatnonzero(rows >= 0)
    fractions[had] = np.where(
        of_type >= 0, last.fractions[np.ix_(rows[had], np.maximum(of_type, 0))], 0.0
    )
    fractions = np.where(contest.speeds > 0, fractions, 0.0)
    used = np.einsum("j,jk->k", contest.gpus, fractions)
    fractions *= np.minimum(contest.capacity / np.maximum(used, 1e-9), 1.0)
    if last.solved_at_s > 0:
        since = f"those of {now_s - last.solved_at_s:.0f} s ago hold on"
    else:
        since = "all have equal ones"
    return Answer(
        fractions=fractions,
        granted=replace(last, status=status, n_fallbacks=last.n_fallbacks + 1, question=b""),
        excuse=f"shares could not be computed ({status}): {since}",
    )


def _question(contest: Contest) -> bytes:
    """Return a digest of all that does not change by itself.

    Queues are numbered without those that were deleted: a restart forgets these.
    """
    digest = hashlib.blake2b(digest_size=16)
    tree = contest.tree
    is_known = np.array([*(queue is not None for queue in tree.queues), True])
    number, known = np.cumsum(is_known) - 1, np.flatnonzero(is_known[:-1])
    for column in (
        contest.capacity,
        contest.gpus,
        contest.weights,
        contest.speeds,
        contest.price_usd_per_h,
        contest.priority,
        number[contest.queue],
        number[tree.parent[known]],
        np.array([tree.weight(row) for row in known.tolist()]),
    ):
        digest.update(repr(column.shape).encode())
        digest.update(np.ascontiguousarray(column).tobytes())
    if contest.sharing is not None:
        for column in (contest.sharing.table, contest.sharing.profile, contest.sharing.beside):
            digest.update(repr(column.shape).encode())
            digest.update(np.ascontiguousarray(column).tobytes())
    digest.update(repr(contest.gpu_types).encode())
    return digest.digest()
