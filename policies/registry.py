"""The policies by name."""

from collections.abc import Mapping

from policies.orderings import (
    first_come_first_served,
    highest_priority,
    lower_priority,
    nobody,
)
from policies.scoring import best_fit
from scheduler.core.errors import InvalidInput
from scheduler.core.ports import Policy

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


def policy_named(name: str) -> Policy:
    """Return the policy of that name; InvalidInput names the ones there are."""
    if name not in POLICIES:
        raise InvalidInput("policy", f"is {name!r}; must be one of {', '.join(POLICIES)}")
    return POLICIES[name]
