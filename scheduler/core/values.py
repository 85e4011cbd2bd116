"""Values: dataclasses that nobody changes, made as fast as Python makes objects.

`frozen=True` of the standard library guards every field of every new object with a call, which
more than triples what an object costs; events, tasks and plans are made by the million. Here
the guard is the type checker's: to it a value is a frozen dataclass, and an assignment to a
field is an error. When the program runs, it is a plain one with slots, equality and a hash.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

__all__ = ["value_class"]

if TYPE_CHECKING:
    from dataclasses import dataclass as value_class
else:
    from dataclasses import dataclass

    def value_class(*, frozen: bool, slots: bool, kw_only: bool) -> Callable[[type], type]:
        """Return a decorator like `dataclass`; what is `frozen` can be hashed."""
        return dataclass(slots=slots, kw_only=kw_only, unsafe_hash=frozen)
