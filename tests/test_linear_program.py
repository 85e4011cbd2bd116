"""Linear programs: blocks, senses, prices by name, limits told as values, classes of rows."""

import numpy as np
import pytest
from scipy import sparse

from policies.linear_program import LARGE, LinearProgram, Status, classes_of


def test_a_diet_by_hand():
    # min 2a + 3b, a + b >= 4, a <= 3: a = 3, b = 1; one more unit of demand costs 3.
    lp = LinearProgram(a=1, b=1)
    lp.at_least({"a": 1, "b": 1}, 4, name="demand")
    lp.at_most({"a": 1}, 3, name="stock")
    solution = lp.minimize({"a": 2, "b": 3})
    assert solution.status is Status.OPTIMAL
    assert solution.value == pytest.approx(9)
    assert (solution["a"][0], solution["b"][0]) == pytest.approx((3, 1))
    assert solution.prices["demand"] == pytest.approx([3])
    assert solution.prices["stock"] == pytest.approx([-1])


def test_maximising_prices_are_gains():
    lp = LinearProgram(x=2)
    lp.at_most({"x": np.eye(2)}, [1, 2], name="each")
    lp.equal({"x": [[1, -1]]}, 0, name="same")
    solution = lp.maximize({"x": [3, 1]})
    assert solution.value == pytest.approx(4)
    assert solution.prices["each"] == pytest.approx([4, 0])
    assert solution.prices["same"] == pytest.approx([-1])  # x = (1, 1 - d): 4 - d


def test_a_block_alone_is_an_objective():
    lp = LinearProgram(share=3, slowest=1)
    lp.at_most({"share": np.ones((1, 3))}, 1)
    lp.at_most({"slowest": np.ones((3, 1)), "share": -np.diag([1.0, 2.0, 4.0])}, 0)
    assert lp.maximize("slowest").value == pytest.approx(1 / (1 + 1 / 2 + 1 / 4))


def test_bounds_replace_at_least_zero():
    lp = LinearProgram(x=2)
    lp.bound("x", lower=-np.inf, upper=[5, 7])
    lp.at_least({"x": sparse.eye_array(2)}, -3)
    assert lp.minimize("x").value == pytest.approx(-6)
    assert lp.maximize("x").value == pytest.approx(12)


@pytest.mark.parametrize(
    ("bound", "status"), [(-1, Status.INFEASIBLE), (None, Status.UNBOUNDED)]
)
def test_no_optimum_is_a_value(bound, status):
    lp = LinearProgram(x=1)
    if bound is not None:
        lp.at_most({"x": 1}, bound)
    else:
        lp.at_least({"x": 1}, 1)
    solution = lp.maximize("x")
    assert solution.status is status
    assert not solution.found
    assert np.isnan(solution.value)


def test_out_of_time_is_a_value():
    draw = np.random.default_rng(0)
    lp = LinearProgram(x=2_000)
    lp.at_most({"x": draw.uniform(0, 1, (300, 2_000))}, 100)
    solution = lp.maximize({"x": draw.uniform(0, 1, 2_000)}, time_limit_s=1e-3)
    assert solution.status is Status.LIMIT


def test_whole_numbers():
    # Knapsack of 10 with weights 4, 5, 6 and values 5, 6, 8: 4 + 6 is worth 13.
    lp = LinearProgram(take=3)
    lp.bound("take", upper=1)
    lp.whole("take")
    lp.at_most({"take": [[4, 5, 6]]}, 10)
    lp.equal({"take": [[0, 1, 0]]}, 0)
    lp.at_least({"take": [[1, 1, 1]]}, 1)
    solution = lp.maximize({"take": [5, 6, 8]})
    assert solution.value == pytest.approx(13)
    np.testing.assert_allclose(solution["take"], [1, 0, 1], atol=1e-9)


def test_whole_numbers_found_by_a_bounded_search_are_told_as_such():
    # Five knapsacks over forty things: no search of one node proves an optimum.
    weights = np.random.default_rng(0).integers(10, 100, (5, 40)).astype(float)
    lp = LinearProgram(x=40)
    lp.bound("x", upper=1.0)
    lp.whole("x", node_limit=1)
    lp.at_most({"x": weights}, weights.sum(axis=1) / 2)
    solution = lp.maximize({"x": weights.sum(axis=0)[None]})
    assert solution.status is Status.LIMIT
    assert (weights @ solution["x"] <= weights.sum(axis=1) / 2 + 1e-6).all()
    assert solution.value > 0


def test_whole_numbers_can_be_infeasible():
    lp = LinearProgram(n=1)
    lp.whole("n")
    lp.at_least({"n": 1}, 0.2)
    lp.at_most({"n": 1}, 0.8)
    assert lp.minimize("n").status is Status.INFEASIBLE


def test_large_programs_agree_with_small_ones():
    draw = np.random.default_rng(1)
    n = LARGE // 20
    rows = draw.uniform(0.1, 1, (25, n))
    value = draw.uniform(0, 1, n)
    lp = LinearProgram(x=n)
    lp.at_most({"x": rows}, 1, name="rows")
    interior = lp.maximize({"x": value})
    # Duality is the independent witness: the prices bound the value from above.
    prices = interior.prices["rows"]
    assert (prices >= -1e-9).all()
    assert (prices @ rows >= value - 1e-7).all()
    assert prices.sum() == pytest.approx(interior.value, rel=1e-7)


def test_a_matrix_of_the_wrong_shape_is_refused():
    lp = LinearProgram(x=2)
    with pytest.raises(ValueError, match="x: "):
        lp.at_most({"x": np.ones((1, 3))}, 1)


def test_equal_rows_are_one_class():
    classes = classes_of([[1, 2], [3, 4], [1, 2], [1, 2]], [5, 6, 5, 7])
    table = np.array([[1, 2, 5], [3, 4, 6], [1, 2, 5], [1, 2, 7]])
    assert len(classes.first) == 3
    np.testing.assert_array_equal(table[classes.first][classes.of_row], table)
    assert sorted(classes.copies) == [1, 1, 2]


def test_no_rows_no_classes():
    assert len(classes_of(np.zeros((0, 3))).first) == 0
