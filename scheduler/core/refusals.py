"""How an observer says no."""

from scheduler.core.plan import Refusal


class Refused(Exception):
    """The event makes no sense now; nothing was changed."""

    def __init__(self, refusal: Refusal, message: str, field: str = "") -> None:
        super().__init__(message)
        self.refusal = refusal
        self.field = field
