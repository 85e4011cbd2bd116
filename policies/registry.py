"""The policies, and the scores that they place by, by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from policies import outside, programs
from policies.circumstances import Health, Price
from policies.combination import scaled_by_name
from policies.contest import ShareProgram
from policies.fragmentation import Workload, fgd, workload_of
from policies.goodput import Goodput
from policies.locality import NOWHERE, DataMap, Locality
from policies.orderings import (
    dominant_resource_fairness,
    first_come_first_served,
    highest_priority,
    lower_priority,
    nobody,
    shortest_job,
)
from policies.packed_rounds import PackedRounds
from policies.packing import lepton_packing
from policies.progress import least_attained_service, shortest_remaining
from policies.rounds import Rounds
from policies.scoring import (
    Random,
    best_fit,
    best_fit_in_two,
    dot_product,
    gpu_clustering,
    gpu_packing,
    worst_fit,
)
from scheduler.core.errors import InvalidInput
from scheduler.core.node_columns import NodeColumns
from scheduler.core.ports import NodeScore, Ordering, Policy, PreemptionRule, RoundRule
from scheduler.core.snapshot import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a policy is for, and who thought of it."""

    aim: str
    source: str


def _in_order(name: str, order: Ordering, may_preempt: PreemptionRule = nobody) -> Policy:
    return Policy(name=name, order=order, may_preempt=may_preempt, score=best_fit)


def _in_rounds(name: str, rounds: RoundRule) -> Policy:
    return replace(_in_order(name, first_come_first_served), rounds=rounds)


def _by_shares(
    name: str, program: ShareProgram, *, sees_speeds: bool = False, is_timeless: bool = False
) -> Policy:
    rounds = Rounds(program=program, sees_speeds=sees_speeds, is_timeless=is_timeless)
    return _in_rounds(name, rounds)


def _packed(name: str, program: ShareProgram, *, is_timeless: bool = False) -> Policy:
    return _in_rounds(
        name, PackedRounds(program=program, sees_speeds=True, is_timeless=is_timeless)
    )


_LEPTON = Rounds(
    program=programs.Lepton(), sees_speeds=True, minds_priority=True, keeps_order=True
)


_LISTED: tuple[tuple[Policy, str, str], ...] = (
    (_in_order("fifo", first_come_first_served), "arrival", "first come, first served"),
    (
        _in_order("priority", highest_priority, lower_priority),
        "priority; stops lower ones",
        "Kubernetes and Slurm",
    ),
    (
        _in_order("shortest_job", shortest_job),
        "short jobs first, by their estimate",
        "shortest job first",
    ),
    (
        _in_rounds("shortest_remaining", shortest_remaining),
        "mean time to completion, by estimates",
        "shortest remaining time first (Schrage 1968)",
    ),
    (
        _in_rounds("least_attained_service", least_attained_service),
        "mean time to completion, without estimates",
        "Tiresias, NSDI '19",
    ),
    (
        _in_order("drf", dominant_resource_fairness),
        "the least dominant share of a submitter",
        "Ghodsi et al., NSDI '11",
    ),
    (
        _by_shares("max_min_fairness", programs.max_min_fairness, is_timeless=True),
        "the least time per weight",
        "Gavel, OSDI '20",
    ),
    (
        _by_shares(
            "max_min_fairness_perf",
            programs.max_min_fairness_perf,
            sees_speeds=True,
            is_timeless=True,
        ),
        "the least speed per weight, knowing throughputs",
        "Gavel, OSDI '20",
    ),
    (
        _packed("max_min_fairness_packed", programs.max_min_fairness_packed, is_timeless=True),
        "the least speed per weight, two jobs on one GPU where that does more",
        "Gavel, OSDI '20",
    ),
    (
        _by_shares("water_filling", programs.water_filling, is_timeless=True),
        "time per weight, from the least up",
        "Gavel, OSDI '20",
    ),
    (
        _by_shares(
            "water_filling_perf",
            programs.water_filling_perf,
            sees_speeds=True,
            is_timeless=True,
        ),
        "speed per weight, from the least up, knowing throughputs",
        "Gavel, OSDI '20",
    ),
    (
        _packed("water_filling_packed", programs.water_filling_packed, is_timeless=True),
        "speed per weight, from the least up, two jobs on one GPU where that does more",
        "Gavel, OSDI '20",
    ),
    (
        _by_shares("finish_time_fairness", programs.finish_time_fairness),
        "the worst finish time beside an equal share's",
        "Themis, NSDI '20",
    ),
    (
        _by_shares(
            "finish_time_fairness_perf", programs.finish_time_fairness_perf, sees_speeds=True
        ),
        "the worst finish time beside an equal share's, knowing throughputs",
        "Gavel, OSDI '20",
    ),
    (
        _by_shares("min_total_duration", programs.min_total_duration),
        "the end of the last job",
        "Gavel, OSDI '20",
    ),
    (
        _by_shares(
            "min_total_duration_perf", programs.min_total_duration_perf, sees_speeds=True
        ),
        "the end of the last job, knowing throughputs",
        "Gavel, OSDI '20",
    ),
    (
        _packed("min_total_duration_packed", programs.min_total_duration_packed),
        "the end of the last job, two jobs on one GPU where that does more",
        "Gavel, OSDI '20",
    ),
    (
        _by_shares(
            "max_throughput", programs.max_throughput, sees_speeds=True, is_timeless=True
        ),
        "work per second, each job's by its fastest speed",
        "Gavel, OSDI '20",
    ),
    (
        _by_shares("hierarchical", programs.hierarchical, sees_speeds=True, is_timeless=True),
        "speed per weight of queues, from the least up; inside, of jobs",
        "Gavel, OSDI '20",
    ),
    (
        _by_shares(
            "hierarchical_fifo", programs.hierarchical_fifo, sees_speeds=True, is_timeless=True
        ),
        "speed per weight of queues, from the least up; inside, priority and arrival",
        "Gavel, OSDI '20",
    ),
    (
        _by_shares("min_cost", programs.min_cost, sees_speeds=True, is_timeless=True),
        "work per dollar",
        "Gavel, OSDI '20",
    ),
    (
        _by_shares("min_cost_deadlines", programs.min_cost_deadlines, sees_speeds=True),
        "deadlines, then work per dollar",
        "Gavel, OSDI '20",
    ),
    (
        _in_rounds("goodput", Goodput()),
        "work per second of elastic jobs, fairly: one size and type of GPU for each",
        "Sia, SOSP '23",
    ),
    (
        _by_shares("deadlines", programs.deadlines, sees_speeds=True),
        "deadlines that are promised at admission; others share what is left",
        "ElasticFlow, ASPLOS '23",
    ),
    (
        replace(_in_order("lepton", highest_priority, lower_priority), rounds=_LEPTON),
        "guarantees, deadlines, fair finish times; then progress per dollar",
        "docs/policies.md",
    ),
)

POLICIES: Mapping[str, Policy] = {policy.name: policy for policy, _, _ in _LISTED}
"""Every policy that a configuration may name."""

ABOUT: Mapping[str, About] = {
    policy.name: About(aim=aim, source=source) for policy, aim, source in _LISTED
}
"""What each policy aims at, and its source."""


SCORES: Mapping[str, NodeScore] = {
    "best-fit": best_fit,
    "worst-fit": worst_fit,
    "random": Random(),
    "best-fit-in-two": best_fit_in_two,
    "dot-product": dot_product,
    "gpu-packing": gpu_packing,
    "gpu-clustering": gpu_clustering,
    "price": Price(),
    "locality": Locality(),
}
"""The scores that look at a node and the task alone."""

AIMED_SCORES: Mapping[str, Callable[[NodeColumns, Workload], NodeScore]] = {
    "fgd": fgd,
    "lepton": lepton_packing,
}
"""The scores that are made for a cluster and for the tasks expected on it."""


TIMED_SCORES: Mapping[str, Callable[[float], NodeScore]] = {
    "health": lambda now_s: Health(now_s=now_s),
}
"""The scores that look at what happened until now."""

LOCALITY = "locality"
"""The score that looks at where data lies, of which a configuration tells."""

Score = str | Mapping[str, float]
"""A score by its name, or several with their weights."""


def is_aimed(score: Score) -> bool:
    """Return whether a score is to be made anew from time to time, as jobs and nodes change."""
    names = [score] if isinstance(score, str) else score
    return any(name in {*AIMED_SCORES, *TIMED_SCORES} for name in names)


def policy_named(
    name: str,
    *,
    score: Score | None = None,
    snapshot: Snapshot | None = None,
    data: DataMap = NOWHERE,
) -> Policy:
    """Return the policy of that name; InvalidInput names the ones there are.

    `score` names another score than the policy's own; see `score_named`. Queues may name any of
    ours for the jobs in them.
    """
    policy = replace(POLICIES.get(name) or _policy_from_outside(name), inside=POLICIES)
    return (
        policy if score is None else replace(policy, score=score_named(score, snapshot, data))
    )


def _policy_from_outside(name: str) -> Policy:
    found = outside.outsiders(outside.POLICY_GROUP)
    if name not in found:
        names = ", ".join([*POLICIES, *found])
        raise InvalidInput("policy", f"must be one of {names}, not {name!r}")
    return outside.policy_of(found[name])


def in_rounds_of(
    policy: Policy, round_s: float, *, time_limit_s: float | None = None
) -> Policy:
    """Return the policy with turns of that length and that limit to solves, if it has turns.

    Those inside queues, too. Goodput keeps the length of its own turns.
    """

    def change(rounds: Rounds) -> Rounds:
        return replace(rounds, round_s=round_s, time_limit_s=time_limit_s)

    return _limiting_goodput(_with_rounds(policy, change), time_limit_s)


def _limiting_goodput(policy: Policy, time_limit_s: float | None) -> Policy:
    inside = {
        name: _limiting_goodput(other, time_limit_s) for name, other in policy.inside.items()
    }
    rounds = policy.rounds
    if isinstance(rounds, Goodput):
        rounds = replace(rounds, time_limit_s=time_limit_s)
    return replace(policy, inside=inside, rounds=rounds)


def weighing(policy: Policy, *, fair_within: float, cost: float) -> Policy:
    """Return the policy, and those inside queues, with these terms where it is `lepton`."""

    def change(rounds: Rounds) -> Rounds:
        if not isinstance(rounds.program, programs.Lepton):
            return rounds
        program = programs.Lepton(fair_within=fair_within, cost=cost)
        return replace(rounds, program=program)

    return _with_rounds(policy, change)


def _with_rounds(policy: Policy, change: Callable[[Rounds], Rounds]) -> Policy:
    inside = {name: _with_rounds(other, change) for name, other in policy.inside.items()}
    rounds = change(policy.rounds) if isinstance(policy.rounds, Rounds) else policy.rounds
    return replace(policy, inside=inside, rounds=rounds)


def score_named(
    name: Score, snapshot: Snapshot | None = None, data: DataMap = NOWHERE
) -> NodeScore:
    """Return the score of that name; InvalidInput names the ones there are.

    A mapping of names to weights is their combination, each from 0 to 1 before it is weighed.

    One that is made for the tasks to come takes the live jobs of the snapshot for their like,
    and is the best fit as long as there are none. Ask again as the jobs change.
    """
    if not isinstance(name, str):
        return scaled_by_name(_weights(name), lambda part: score_named(part, snapshot, data))
    if name == LOCALITY:
        return Locality(data=data)
    if name in SCORES:
        return SCORES[name]
    if name in TIMED_SCORES:
        return TIMED_SCORES[name](0.0 if snapshot is None else snapshot.now_s)
    if name not in AIMED_SCORES:
        found = outside.outsiders(outside.SCORE_GROUP)
        if name not in found:
            names = ", ".join([*SCORES, *AIMED_SCORES, *TIMED_SCORES, *found])
            raise InvalidInput("score", f"must be one of {names}, not {name!r}")
        return outside.score_of(found[name])
    workload = Workload.of({}) if snapshot is None else workload_of(snapshot)
    if snapshot is None or not workload.shapes:
        return best_fit
    return AIMED_SCORES[name](snapshot.nodes, workload)


def _weights(weights: Mapping[str, float]) -> Mapping[str, float]:
    if not weights:
        raise InvalidInput("score", "must name at least one score")
    for name, weight in weights.items():
        if not 0.0 < weight < 1e9:
            raise InvalidInput("score", f"the weight of {name} must be above 0")
    return weights
