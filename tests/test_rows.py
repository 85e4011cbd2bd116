"""Columns that grow by a row at a time."""

import numpy as np
import pytest

from scheduler.core.rows import FIRST_ROWS, with_row


@pytest.mark.parametrize("shape", [(0,), (0, 4), (0, 0), (3, 2)])
def test_every_column_on_the_way_keeps_its_rows(shape: tuple[int, ...]) -> None:
    column = np.full(shape, -1, np.int64)
    first = len(column)
    seen = []
    for number in range(3 * FIRST_ROWS):
        column = with_row(column, number)
        seen.append(column)
    for number, old in enumerate(seen):
        expected = np.concatenate([np.full(first, -1), np.arange(number + 1)])
        wide = np.broadcast_to(expected.reshape(-1, *[1] * (len(shape) - 1)), old.shape)
        assert np.array_equal(old, wide)


def test_memory_is_made_anew_a_few_times_only() -> None:
    column, homes = np.zeros(0), set()
    for number in range(1_000):
        column = with_row(column, number)
        homes.add(id(column.base))
    assert len(homes) <= 6  # 64, 128, ... 1,024 rows


def test_a_column_with_memory_of_its_own_is_left_alone() -> None:
    old = np.arange(3)
    longer = with_row(old, 3)
    longer[0] = 7
    assert old.tolist() == [0, 1, 2]
    assert longer.tolist() == [7, 1, 2, 3]


def test_a_wider_row_is_refused() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        with_row(np.zeros((2, 3)), (1, 2, 3, 4))
