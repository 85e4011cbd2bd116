"""The exceptions of the project.

    SchedulerError
    ├── InvalidInput          a caller's mistake: names the field and the rule
    ├── InvariantError        the core contradicted itself: always a bug, never caught
    ├── InvalidTransition     a move the transition tables do not allow; the door turns
    │                         it into a `Rejected` outcome
    └── PolicyError           a policy or score from outside the tree broke its contract

Expected outcomes (not fitting, stale, unknown job) are values, not exceptions.
"""

from collections.abc import Sequence


class SchedulerError(Exception):
    """The root of everything this project raises on purpose."""


class InvalidInput(SchedulerError):
    """A caller's mistake; nothing was changed."""

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field}: {rule}" if field else rule)
        self.field = field
        self.rule = rule


class PolicyError(SchedulerError):
    """A policy or score from outside the tree failed; nothing can be decided with it."""


class InvariantError(SchedulerError):
    """The core contradicted itself. Always a bug, never caught; carries the history."""

    def __init__(self, message: str, history: Sequence[object] = ()) -> None:
        super().__init__("\n  ".join([message, *map(str, history)]))
        self.history = tuple(history)


class InvalidTransition(SchedulerError):
    """A move that the transition tables do not allow, with the subject's history."""

    def __init__(self, subject: str, move: str, history: Sequence[object] = ()) -> None:
        super().__init__("\n  ".join([f"{subject}: {move} is impossible", *map(str, history)]))
        self.subject = subject
        self.move = move
        self.history = tuple(history)
