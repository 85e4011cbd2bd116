"""The policies, and the scores that they place by, by name."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from policies.fragmentation import Workload, fgd, workload_of
from policies.orderings import (
    first_come_first_served,
    highest_priority,
    lower_priority,
    nobody,
)
from policies.packing import lepton_packing
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
from scheduler.core.ports import NodeScore, Policy
from scheduler.core.snapshot import NodeColumns, Snapshot

POLICIES: Mapping[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy(name="fifo", order=first_come_first_served, may_preempt=nobody, score=best_fit),
        Policy(
            name="priority",
            order=highest_priority,
            may_preempt=lower_priority,
            score=best_fit,
        ),
    )
}
"""Every policy that a configuration may name."""


SCORES: Mapping[str, NodeScore] = {
    "best-fit": best_fit,
    "worst-fit": worst_fit,
    "random": Random(),
    "best-fit-in-two": best_fit_in_two,
    "dot-product": dot_product,
    "gpu-packing": gpu_packing,
    "gpu-clustering": gpu_clustering,
}
"""The scores that look at a node and the task alone."""

AIMED_SCORES: Mapping[str, Callable[[NodeColumns, Workload], NodeScore]] = {
    "fgd": fgd,
    "lepton": lepton_packing,
}
"""The scores that are made for a cluster and for the tasks expected on it."""


def policy_named(
    name: str, *, score: str | None = None, snapshot: Snapshot | None = None
) -> Policy:
    """Return the policy of that name; InvalidInput names the ones there are.

    `score` names another score than the policy's own; see `score_named`.
    """
    if name not in POLICIES:
        raise InvalidInput("policy", f"is {name!r}; must be one of {', '.join(POLICIES)}")
    policy = POLICIES[name]
    return policy if score is None else replace(policy, score=score_named(score, snapshot))


def score_named(name: str, snapshot: Snapshot | None = None) -> NodeScore:
    """Return the score of that name; InvalidInput names the ones there are.

    One that is made for the tasks to come takes the live jobs of the snapshot for their like,
    and is the best fit as long as there are none. Ask again as the jobs change.
    """
    if name in SCORES:
        return SCORES[name]
    if name not in AIMED_SCORES:
        names = ", ".join([*SCORES, *AIMED_SCORES])
        raise InvalidInput("score", f"is {name!r}; must be one of {names}")
    workload = Workload.of({}) if snapshot is None else workload_of(snapshot)
    if snapshot is None or not workload.shapes:
        return best_fit
    return AIMED_SCORES[name](snapshot.nodes, workload)
