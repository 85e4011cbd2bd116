"""Tables of published results: openb's experiment on two nodes, and the document."""

import json
from pathlib import Path

import pytest

from policies.scoring import best_fit, worst_fit
from scheduler.core.model import Gpu, Node, Shape
from scheduler.core.space import Space
from simulator.reproduction import __main__ as program
from simulator.reproduction.comparison import Comparison, Table, Task, tables
from simulator.reproduction.document import as_json, markdown, number, verdict
from simulator.reproduction.fgd import (
    MOMENTS,
    arrivals,
    columns,
    fill,
    permuted,
    published,
    score_for,
    tied,
    workload_in,
)
from simulator.reproduction.migration import _Packed, fill_with_moves

HALF = Shape(cpu_milli=1000, memory_mib=1, gpu_milli=500)
WHOLE = Shape(cpu_milli=1000, memory_mib=1, gpus=1)
PAIR = Shape(cpu_milli=1000, memory_mib=1, gpus=2)
WITHOUT = Shape(cpu_milli=2000, memory_mib=1)


def nodes(n: int = 2, gpus: int = 2) -> list[Node]:
    return [
        Node(
            name=f"n{i}",
            cpu_milli=8000,
            memory_mib=100,
            gpu_type="T4" if i else "V100",
            gpus=tuple(Gpu(uuid=f"{i}-{d}", memory_mib=1000) for d in range(gpus)),
        )
        for i in range(n)
    ]


# openb


def test_pods_are_inflated_by_draws_until_they_ask_for_enough():
    pods = [HALF, WHOLE, WITHOUT]
    made = arrivals(pods, seed=1, gpu_milli=4000)
    assert sorted(made[:3], key=str) == sorted(pods, key=str), "each of them once"
    assert set(made) <= set(pods)
    asked = [sum(pod.total_gpu_milli for pod in made[:n]) for n in range(len(made) + 1)]
    assert asked[-1] >= 4000 > asked[-2]
    assert arrivals(pods, seed=1, gpu_milli=4000) == made
    assert arrivals(pods, seed=2, gpu_milli=4000) != made


def test_typical_pods_cover_95_per_cent_and_memory_is_no_matter():
    pods = [HALF] * 10 + [Shape(cpu_milli=1000, memory_mib=7, gpu_milli=500)] * 8
    pods += [WHOLE] * 1 + [WITHOUT] * 1
    typical = workload_in(pods).typical()
    assert [shape.memory_mib for shape in typical.shapes] == [0, 0]
    assert typical.popularity == pytest.approx((18 / 19, 1 / 19))


def test_a_filling_is_measured_when_so_much_has_arrived():
    # 4 GPUs; halves arrive until they ask for 5.2: at 60 % five have, at 100 % eight.
    filled = fill(nodes(), [HALF] * 11, "best-fit", seed=42)
    assert filled.allocated == {60: 62.5, 100: 100.0, 130: 100.0}
    assert filled.fragmented == {60: 0.0, 100: 0.0, 130: 0.0}


def test_what_does_not_fit_is_dropped_and_others_pass():
    pods = [PAIR, PAIR, PAIR]
    filled = fill(nodes(3, gpus=3), pods, "best-fit", seed=42)
    # 9 GPUs, 3 nodes: one pair each; a GPU of each is left that no pair can use.
    assert filled.allocated[130] == pytest.approx(100 * 6 / 9)
    assert filled.fragmented[130] == pytest.approx(100 * 3 / 9)


def test_batches_change_nothing(monkeypatch):
    pods = [HALF, WHOLE, PAIR, WITHOUT, HALF, HALF]
    whole = fill(nodes(6, gpus=4), pods * 4, "fgd", seed=43)
    monkeypatch.setattr("simulator.reproduction.fgd.BATCH", 1)
    assert fill(nodes(6, gpus=4), pods * 4, "fgd", seed=43) == whole


def test_the_order_of_nodes_is_the_runs_own():
    six = nodes(6)
    names = [[node.name for node in permuted(six, seed=seed)] for seed in (1, 1, 2)]
    assert names[0] == names[1] != names[2]
    assert score_for("best-fit", columns(six), workload_in([HALF])) is best_fit


def test_tied_pods_go_to_types_wide_enough_for_them():
    mixed = [*nodes(1, gpus=1), *nodes(2, gpus=2)[1:]]
    made = tied([PAIR, WITHOUT] * 20, mixed, part=1.0, steps=1)
    assert {pod.gpu_types for pod in made if pod.gpus} == {("T4",)}
    assert all(not pod.gpu_types for pod in made if not pod.gpus)


def test_published_figures_are_means_over_seeds(tmp_path):
    head = "workload,sc_policy,seed," + ",".join(str(percent) for percent in MOMENTS)
    rows = [
        "openb_pod_list_default,06-FGD,42,60,95,96",
        "openb_pod_list_default,06-FGD,43,60,96,97",
    ]
    other = [
        "openb_pod_list_default,05-BestFit,42,1,2,3",
        "openb_pod_list_cpu050,06-FGD,42,1,2,3",
    ]
    for name in ("allo", "frag"):
        (tmp_path / f"expected_{name}.csv.gz").write_text(
            "\n".join([head, *rows, *other]) + "\n"
        )
    assert published(tmp_path, "default", "fgd").allocated == {60: 60.0, 100: 95.5, 130: 96.5}


def test_a_pod_is_moved_if_that_lets_another_one_in():
    # Two nodes of two GPUs; the first pods share them out so that a pair fits nowhere.
    packed = _Packed(Space(columns(nodes()), worst_fit))
    assert [packed.place(WHOLE), packed.place(WHOLE)] == [0, 1]
    assert packed.place(PAIR) is None
    assert packed.make_room(PAIR)
    assert packed.space.nodes.device_used.sum() == 4000
    assert sorted(len(held) for held in packed.held) == [1, 2]
    assert not packed.make_room(PAIR), "all is full"
    assert packed.space.nodes.device_used.sum() == 4000


def test_pods_move_only_as_far_as_the_budget_goes():
    pods = [WHOLE, WHOLE, PAIR]
    seed = next(n for n in range(99) if arrivals(pods, seed=n, gpu_milli=4000)[-1] == PAIR)
    still, moved = (
        fill_with_moves(nodes(), pods, "worst-fit", seed=seed, budget=budget)
        for budget in (0.0, 0.5)
    )
    assert (still.allocated, still.moved) == (50.0, 0.0)
    assert (moved.allocated, moved.moved) == (100.0, pytest.approx(1 / 3))


# Comparisons and documents


def row(**values) -> Comparison:
    fields = {"case": "a case", "figure": "JCT", "unit": "s", "published": 100.0, "ours": 104.0}
    return Comparison(**(fields | values))


@pytest.mark.parametrize(
    ("values", "difference", "holds"),
    [
        ({}, 0.04, None),
        ({"tolerance": 0.05}, 0.04, True),
        ({"tolerance": 0.03}, 0.04, False),
        ({"tolerance": 3.9, "is_absolute": True}, 4.0, False),
        ({"tolerance": 0.05, "at_most": 103.0}, 0.04, False),
        ({"at_least": 104.0}, 0.04, True),
        ({"published": None, "tolerance": 0.05}, None, None),
    ],
)
def test_a_figure_holds_if_it_is_near_enough_and_reaches_its_goal(values, difference, holds):
    made = row(**values)
    assert (made.difference, made.holds) == (pytest.approx(difference), holds)


def table(rows: list[Comparison], *, data: str = "") -> Table:
    return Table(
        number=9,
        title="A table",
        source="a paper",
        data=data,
        tasks=lambda folder: [Task(title="part", compute=list, arguments=(rows,))],
    )


def test_the_document_has_a_line_per_figure_and_says_what_does_not_hold():
    rows = [
        row(tolerance=0.05),
        row(figure="cost", unit="", ours=120.0, tolerance=0.05, note="why"),
        row(case="other", published=None, ours=12345.6, at_least=1.0),
    ]
    text = markdown({9: rows}, [table(rows)], data="`data`")
    assert "| a case | JCT, s | 100.00 | 104.00 | +4.00 % | ± 5 % | yes |  |" in text
    assert "|  | cost | 100.00 | 120.00 | +20.00 % | ± 5 % | **no** | why |" in text
    assert "| other | JCT, s |  | 12,346 |  | ≥ 1.00 | yes |  |" in text
    assert "2 of 3 figures" in verdict({9: rows})
    assert "Not so: a case, cost." in text


def test_the_document_for_programs_has_every_figure():
    rows = [row(tolerance=0.05)]
    [made] = json.loads(as_json({9: rows}, [table(rows)], data="d"))["tables"]
    assert made["figures"][0]["difference"] == pytest.approx(0.04)
    assert made["figures"][0]["holds"] is True


def test_figures_have_the_digits_that_matter():
    assert [number(v) for v in (12345.6, 12.345, 0.12345)] == ["12,346", "12.35", "0.123"]


@pytest.fixture
def only(monkeypatch):
    def use(*made: Table) -> None:
        monkeypatch.setattr(program, "tables", lambda: list(made))

    return use


def test_without_data_it_says_which_are_missing(tmp_path, only, capsys):
    only(table([row()], data="gavel"))
    assert program.main(["--data", str(tmp_path), "--out", str(tmp_path)]) == program.NO_DATA
    assert "gavel" in capsys.readouterr().err
    assert not (tmp_path / "reproduction.md").exists()


@pytest.mark.parametrize(("tolerance", "status"), [(0.05, 0), (0.01, 1)])
def test_it_writes_the_documents_and_tells_whether_all_holds(tmp_path, only, tolerance, status):
    only(table([row(tolerance=tolerance)]))
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path), "--jobs", "1"]
    assert program.main(arguments) == status
    assert "A table" in (tmp_path / "reproduction.md").read_text()
    assert json.loads((tmp_path / "reproduction.json").read_text())["format"] == 1


def test_what_was_kept_is_not_computed_again(tmp_path, only, capsys):
    first, other = table([row(ours=1.0)]), table([row(ours=2.0)])
    arguments = [
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path),
        "--keep",
        str(tmp_path / "kept"),
    ]
    only(first)
    assert program.main([*arguments, "--kept-only"]) == 0
    assert "Not computed in this run: part." in (tmp_path / "reproduction.md").read_text()
    program.main([*arguments, "--jobs", "1"])
    only(other)
    program.main([*arguments, "--jobs", "1"])
    [made] = json.loads((tmp_path / "reproduction.json").read_text())["tables"]
    assert made["figures"][0]["ours"] == 1.0


def test_every_table_has_a_number_of_its_own_and_lists_tasks_only_with_data():
    numbers = [made.number for made in tables()]
    assert len(set(numbers)) == len(numbers)
    assert {1, 2} <= set(numbers)
    assert all(made.tasks(Path("nowhere")) for made in tables() if not made.data)
