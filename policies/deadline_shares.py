"""Who is promised a deadline, and what is granted to whom: `deadlines` on a contest.

Jobs that were promised one before are considered first, then the others as they came, so that
a promise is taken back only if nodes are lost or estimates prove wrong.
"""

import numpy as np

from policies.admission import admitted
from policies.contest import Contest, Grant
from policies.deadlines import Due, paced
from policies.linear_program import Flags, Rows
from policies.max_min_fairness import max_min_shares

PROMISED = "its deadline is promised"
BROKEN = "its deadline was promised and cannot be met any more"
REFUSED = (
    "its deadline cannot be promised beside those that are: it is served with what is left"
)
LOST = "its deadline cannot be met any more: it is served with what is left"


def deadline_shares(contest: Contest) -> Grant:
    """Return shares that meet all promised deadlines, and who is promised one."""
    open_jobs = np.flatnonzero(np.isfinite(contest.deadline_s) & (contest.deadline_s > 0))
    was_kept = np.array([job_id in contest.kept for job_id in contest.job_ids], np.bool_)
    if not len(open_jobs):
        return _without_promises(contest, was_kept)
    due = Due.of(
        contest.speeds[open_jobs],
        contest.gpus[open_jobs],
        work=contest.remaining_work[open_jobs],
        deadline_s=contest.deadline_s[open_jobs],
        capacity=contest.capacity,
    )
    kept = was_kept[open_jobs]
    first_kept = np.argsort(~kept, kind="stable")
    found = admitted(due, first_kept, kept, time_limit_s=contest.time_limit_s)
    promised = open_jobs[found]
    if not len(promised):
        return _without_promises(contest, was_kept)
    others = np.setdiff1d(np.arange(len(contest.gpus)), promised)
    pace = paced(
        due,
        found,
        speeds=contest.speeds[others],
        gpus=contest.gpus[others],
        weights=contest.weights[others],
        time_limit_s=contest.time_limit_s,
    )
    fractions = np.zeros(contest.speeds.shape)
    fractions[promised], fractions[others] = pace.promised, pace.others
    return Grant(
        fractions=fractions,
        status=pace.status,
        prices=pace.prices,
        notes=_notes(contest, promised, was_kept),
        kept=frozenset(contest.job_ids[job] for job in promised.tolist()),
    )


def _without_promises(contest: Contest, was_kept: Flags) -> Grant:
    shares = max_min_shares(
        contest.speeds,
        contest.gpus,
        weights=contest.weights,
        capacity=contest.capacity,
    )
    return Grant(
        fractions=shares.fractions,
        status=shares.status,
        prices=shares.prices,
        notes=_notes(contest, np.zeros(0, np.intp), was_kept),
    )


def _notes(contest: Contest, promised: Rows, was_kept: Flags) -> dict[int, str]:
    fastest = contest.speeds.max(axis=1, initial=0.0)
    is_promised = set(promised.tolist())
    notes = {}
    for job in np.flatnonzero(np.isfinite(contest.deadline_s)).tolist():
        if job in is_promised:
            notes[job] = PROMISED
        elif was_kept[job]:
            notes[job] = BROKEN
        elif contest.remaining_work[job] <= fastest[job] * contest.deadline_s[job]:
            notes[job] = REFUSED
        else:
            notes[job] = LOST
    return notes
