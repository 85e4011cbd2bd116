"""Tables that grow row by row, in memory that grows by doubling, as a list's does."""

from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

T = TypeVar("T", bound=np.generic)

FIRST_ROWS = 64
"""Rows that a table has room for at first."""


def with_row(column: NDArray[T], row: ArrayLike) -> NDArray[T]:
    """Return the column with one row more: a view of the longer one in which there is room.

    The column is a view that this function made, or no view at all. Only one owner may let it
    grow: two that did so from the same one would share rows.
    """
    n_rows, room = len(column), column.base
    has_room = room is not None and room.shape[1:] == column.shape[1:] and len(room) > n_rows
    if not has_room:
        room = np.empty((max(2 * n_rows, FIRST_ROWS), *column.shape[1:]), column.dtype)
        room[:n_rows] = column
    assert room is not None
    longer: NDArray[T] = room[: n_rows + 1]
    longer[n_rows] = row
    return longer
