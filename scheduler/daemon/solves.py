"""Programs of shares under the clock: how often they are asked, how it ends, how long it takes.

Decisions are pure and read no clock, so that the daemon puts its own around the programs of the
policies that it decides by.
"""

from dataclasses import dataclass, replace

from policies.contest import Contest, Grant, ShareProgram
from policies.rounds import Rounds
from scheduler.clock import Clock
from scheduler.core.ports import Policy
from scheduler.core.snapshot import Snapshot
from scheduler.daemon.metrics import Metrics


@dataclass(frozen=True, slots=True)
class _Timed:
    program: ShareProgram
    clock: Clock
    metrics: Metrics

    def __call__(self, contest: Contest) -> Grant:
        start_s = self.clock.monotonic_s()
        status = "failed"
        try:
            answer = self.program(contest)
            grant = answer if isinstance(answer, Grant) else Grant(fractions=answer)
            status = grant.status
            return grant
        finally:
            took_s = self.clock.monotonic_s() - start_s
            self.metrics.solved(status, took_s=took_s)


def asks_programs(policy: Policy, snapshot: Snapshot) -> bool:
    """Return whether a decision may take as long as a solve does."""
    rounds = policy.rounds
    return rounds.is_asked(snapshot) if isinstance(rounds, Rounds) else rounds is not None


def timed(policy: Policy, clock: Clock, metrics: Metrics) -> Policy:
    """Return the policy, with its solves measured; those of the policies inside it, too."""
    inside = {name: timed(other, clock, metrics) for name, other in policy.inside.items()}
    rounds = policy.rounds
    if isinstance(rounds, Rounds) and not isinstance(rounds.program, _Timed):
        rounds = replace(rounds, program=_Timed(rounds.program, clock, metrics))
    return replace(policy, inside=inside, rounds=rounds)
