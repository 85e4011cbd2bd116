"""The only place that reads a clock or waits for one.

`Clock` is what shells take; `SystemClock` is the real one. Tests bring their own.
"""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Time as the shells see it."""

    def now_s(self) -> float:
        """Return the wall clock in epoch seconds; comparable across restarts."""

    def monotonic_s(self) -> float:
        """Return seconds from an arbitrary start that never go back."""

    async def sleep_s(self, delay_s: float) -> None:
        """Return once `delay_s` seconds have passed."""


class SystemClock:
    """The machine's own clock."""

    def now_s(self) -> float:
        """Return the wall clock in epoch seconds."""
        return time.time()

    def monotonic_s(self) -> float:
        """Return the monotonic clock in seconds."""
        return time.monotonic()

    async def sleep_s(self, delay_s: float) -> None:
        """Sleep without blocking the event loop."""
        await asyncio.sleep(delay_s)


class ForwardTime:
    """A clock's time that never goes back: it goes on at its pace where the clock does."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._said_s = 0.0
        self._said_at_s = clock.monotonic_s()

    def now_s(self) -> float:
        """Return the clock's time, or what has become of the last answer if that is more."""
        monotonic_s = self._clock.monotonic_s()
        gone_on_s = self._said_s + (monotonic_s - self._said_at_s)
        self._said_s = max(self._clock.now_s(), gone_on_s)
        self._said_at_s = monotonic_s
        return self._said_s

    def go_on_from(self, at_s: float) -> None:
        """Begin no earlier than at a moment of another life."""
        self._said_s = max(self.now_s(), at_s)
