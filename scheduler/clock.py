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
