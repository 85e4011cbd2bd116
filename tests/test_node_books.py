"""The books of one node in plain integers agree with the columns, whatever is booked."""

import random

import numpy as np
import pytest
from cluster_testing import give, take

from policies.fragmentation import FragmentationGradient, Workload
from policies.scoring import best_fit
from scheduler.core import capacity
from scheduler.core.model import Gpu, Node, NodeName, Shape
from scheduler.core.node_books import NodeBooks
from scheduler.core.space import Space
from simulator.reproduction.fgd import columns

SHAPES = [
    Shape(cpu_milli=1234, memory_mib=333),
    Shape(cpu_milli=500, gpus=1),
    Shape(cpu_milli=4000, memory_mib=1024, gpus=3),
    Shape(cpu_milli=100, gpu_milli=300),
    Shape(cpu_milli=100, gpu_milli=450, gpu_memory_mib=20_000),
]


@pytest.mark.parametrize("seed", range(6))
def test_books_and_columns_agree_after_every_booking(seed: int) -> None:
    draw = random.Random(seed)
    gpus = tuple(Gpu(uuid=str(i), memory_mib=40_960) for i in range(8))
    links = ((0, 1, 2, 3), (4, 5, 6, 7)) if seed % 2 else ()
    node = Node(
        name=NodeName("n"),
        cpu_milli=64_123,
        memory_mib=100_001,
        gpu_type="A100",
        gpus=gpus,
        nvlink=links,
    )
    nodes = columns([node])
    books = NodeBooks(nodes, 0)
    fgd = FragmentationGradient(workload=Workload.of(dict.fromkeys(SHAPES, 1.0)))
    row, taken = np.array([0]), []
    for _ in range(120):
        shape = draw.choice(SHAPES)
        devices = capacity.choose_devices(nodes, 0, shape)
        assert books.choose_devices(shape) == devices
        if devices is not None and capacity.can_take(nodes, 0, shape, devices):
            assert best_fit.of_node(shape)(books) == best_fit(nodes, shape, row.repeat(2))[0]
            assert fgd.of_node(shape)(books) == fgd(nodes, shape, row)[0]
            assert fgd.devices_on(books, shape) == fgd.choose_devices(nodes, 0, shape)
            take(nodes, 0, shape, devices)
            books.take(shape, devices)
            taken.append((shape, devices))
        if taken and draw.random() < 0.4:
            gone = taken.pop(draw.randrange(len(taken)))
            give(nodes, 0, *gone)
            books.give(*gone)
        assert list(books.free) == nodes.free[0].tolist()
        assert list(books.device_free) == nodes.device_free[0].tolist()
        assert books.device_memory_free == nodes.device_memory_free[0].tolist()
        assert books.n_by_width == nodes.n_by_width[0].tolist()


def test_what_is_booked_twice_takes_nothing_from_other_devices() -> None:
    gpus = tuple(Gpu(uuid=str(i), memory_mib=40_960) for i in range(3))
    node = Node(
        name=NodeName("n"), cpu_milli=64_000, memory_mib=1000, gpu_type="A100", gpus=gpus
    )
    space = Space(columns([node]), best_fit)
    whole, half = Shape(gpus=1, cpu_milli=1), Shape(gpu_milli=500, cpu_milli=1)
    for _ in range(2):  # as places are that are promised until somebody else has them
        space.take(0, whole, (0,))
    assert space.room(half) == 4
    assert space.copies_among(half, np.ones((1, 3), np.bool_)).tolist() == [4]
    for _ in range(4):
        assert space.place(half) is not None
    assert space.place(half) is None
