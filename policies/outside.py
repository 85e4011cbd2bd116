"""Policies and scores from outside the tree: Python entry points, loaded when they are named.

They are looked up while a configuration is read, never in a decision; what they answer in one
is checked, so that a mistake names the distribution it came with. docs/extending.md has the
contract.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.orderings import nobody
from policies.scoring import best_fit
from scheduler.core.capacity import can_take
from scheduler.core.errors import InvalidInput, PolicyError
from scheduler.core.model import Shape
from scheduler.core.node_columns import NodeColumns, Rows
from scheduler.core.ports import DeviceChoice, NodeScore, Ordering, Policy, PreemptionRule
from scheduler.core.snapshot import Snapshot

POLICY_GROUP = "lepton.policies"
SCORE_GROUP = "lepton.scores"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outsider:
    """An entry point: what it is called, where it is, and what brought it."""

    name: str
    origin: str  # distribution and version
    points: tuple[EntryPoint, ...]  # more than one: who is meant is open

    def load(self, field: str) -> object:
        """Return the object; InvalidInput says what is wrong, and with which distribution."""
        if len(self.points) > 1:
            raise InvalidInput(field, f"{self.name!r} is offered by {self.origin}: remove one")
        try:
            return self.points[0].load()
        except Exception as error:  # whatever a foreign module does when it is imported
            what = f"{self.name!r} of {self.origin} ({self.points[0].value})"
            raise InvalidInput(field, f"{what} cannot be loaded: {error!r}") from error


def outsiders(group: str) -> dict[str, Outsider]:
    """Return what is installed in a group, by name."""
    by_name: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=group):
        by_name.setdefault(point.name, []).append(point)
    return {
        name: Outsider(
            name=name,
            origin=" and ".join(sorted(_origin(point) for point in points)),
            points=tuple(points),
        )
        for name, points in sorted(by_name.items())
    }


def _origin(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "unknown"


def policy_of(outsider: Outsider) -> Policy:
    """Load a policy: a `Policy`, or an ordering that stops nobody and places by best fit."""
    found = outsider.load("policy")
    if isinstance(found, Policy):
        policy = replace(found, name=outsider.name)
    elif callable(found) and not isinstance(found, type):
        policy = Policy(name=outsider.name, order=found, may_preempt=nobody, score=best_fit)
    else:
        raise InvalidInput(
            "policy",
            f"{outsider.name!r} of {outsider.origin} must be a Policy or an ordering function, "
            f"not {type(found).__name__}",
        )
    return replace(
        policy,
        order=_Order(policy.order, outsider.origin),
        may_preempt=_Rule(policy.may_preempt, outsider.origin),
        score=_checked_score(policy.score, outsider.origin),
    )


def score_of(outsider: Outsider) -> NodeScore:
    """Load a score: a function or an object that is called like one."""
    found = outsider.load("score")
    if not callable(found) or isinstance(found, type):
        raise InvalidInput(
            "score",
            f"{outsider.name!r} of {outsider.origin} must be a score function, "
            f"not {type(found).__name__}",
        )
    return _checked_score(found, outsider.origin)


def described(outsider: Outsider) -> tuple[str, bool]:
    """Return what a policy says it does, or why it cannot, and whether it takes turns."""
    try:
        policy = policy_of(outsider)
    except InvalidInput as error:
        return error.rule, False
    found = outsider.load("policy")
    rule = (policy.rounds or found.order) if isinstance(found, Policy) else found
    said = (rule.__doc__ or "").strip().partition("\n")[0]
    return said.rstrip("."), policy.rounds is not None


# Checks of what outsiders answer


def _asked(origin: str, what: str, call: Callable[..., Any], *given: object) -> Any:  # noqa: ANN401
    try:
        return call(*given)
    except Exception as error:
        raise PolicyError(f"the {what} of {origin} failed: {error!r}") from error


@dataclass(frozen=True, slots=True)
class _Order:
    """An ordering that must return the rows it was given."""

    order: Ordering
    origin: str

    def __call__(self, snapshot: Snapshot, rows: Rows) -> Rows:
        answer = np.asarray(_asked(self.origin, "ordering", self.order, snapshot, rows.copy()))
        if answer.shape != rows.shape or not np.array_equal(np.sort(answer), np.sort(rows)):
            rule = "must return the rows it was given, each once"
            raise PolicyError(f"the ordering of {self.origin} {rule}")
        return answer.astype(np.intp)


@dataclass(frozen=True, slots=True)
class _Rule:
    """A preemption rule that must return some of the rows it was given."""

    rule: PreemptionRule
    origin: str

    def __call__(self, snapshot: Snapshot, row: int, running: Rows) -> Rows:
        what = "preemption rule"
        answer = np.asarray(_asked(self.origin, what, self.rule, snapshot, row, running.copy()))
        if answer.ndim != 1 or not np.isin(answer, running).all():
            raise PolicyError(f"the {what} of {self.origin} must return some of `running`")
        return answer.astype(np.intp)


@dataclass(frozen=True, slots=True)
class _Score:
    """A score that must return a number per row."""

    score: NodeScore
    origin: str

    @property
    def sees_other_nodes(self) -> bool:
        return bool(getattr(self.score, "sees_other_nodes", False))

    def __call__(self, nodes: NodeColumns, shape: Shape, rows: Rows) -> NDArray[np.float64]:
        answer = np.asarray(_asked(self.origin, "score", self.score, nodes, shape, rows))
        if answer.shape != rows.shape or not np.isfinite(answer).all():
            raise PolicyError(f"the score of {self.origin} must return a number per row")
        return answer.astype(np.float64)


@dataclass(frozen=True, slots=True)
class _DeviceScore(_Score):
    """The same, which chooses devices, too."""

    def choose_devices(
        self, nodes: NodeColumns, row: int, shape: Shape
    ) -> tuple[int, ...] | None:
        assert isinstance(self.score, DeviceChoice)
        choose = self.score.choose_devices
        answer = _asked(self.origin, "choice of devices", choose, nodes, row, shape)
        if answer is not None and not can_take(nodes, row, shape, tuple(answer)):
            rule = "must return free devices, as many as the task asks for"
            raise PolicyError(f"the choice of devices of {self.origin} {rule}")
        return None if answer is None else tuple(int(device) for device in answer)


def _checked_score(score: NodeScore, origin: str) -> NodeScore:
    kind = _DeviceScore if isinstance(score, DeviceChoice) else _Score
    return kind(score, origin)
