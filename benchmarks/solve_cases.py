"""Jobs and clusters whose sharing `solve` measures.

Jobs are of the 83 (model, batch size, GPUs) classes that Gavel measured if its throughputs are
at hand (LEPTON_DATA, or shared/data beside the repository), else drawn to resemble them; or all
of them differ.
"""

import gzip
import json
import os
from ast import literal_eval
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from policies.deadlines import Due
from policies.lepton import Needs
from policies.shares import equal_share
from policies.space_sharing import Profiles

TYPES = ("v100", "p100", "k80")
LOAD = 4.0
"""GPUs wanted per GPU there is."""
DATA = Path(os.environ.get("LEPTON_DATA", Path(__file__).resolve().parents[2] / "shared/data"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    throughputs: np.ndarray
    gpus: np.ndarray
    weights: np.ndarray
    capacity: np.ndarray

    @property
    def alone(self) -> np.ndarray:
        return self.throughputs @ equal_share(self.gpus, self.capacity)


def profiles() -> tuple[Profiles, str]:
    path = DATA / "gavel" / "simulation_throughputs.json.gz"
    if not path.exists():
        return resembling(), "drawn at random"
    measured = json.loads(gzip.decompress(path.read_bytes()))
    names = list(measured[TYPES[0]])
    number = {name: i for i, name in enumerate(names)}
    beside = np.zeros((len(names), len(names), len(TYPES)))
    for kind, gpu in enumerate(TYPES):
        for name in names:
            for other, speeds in measured[gpu][name].items():
                if other != "null":
                    beside[number[name], number[other], kind] = speeds[0]
    alone = np.array([[measured[gpu][name]["null"] for gpu in TYPES] for name in names])
    gpus = np.array([float(literal_eval(name)[1]) for name in names])
    return Profiles(gpus=gpus, alone=alone, beside=beside), "as Gavel measured"


def resembling() -> Profiles:
    draw = np.random.default_rng(83)
    gpus = np.array([1.0] * 26 + [2.0] * 19 + [4.0] * 19 + [8.0] * 19)
    alone = draw.lognormal(2, 1, (83, 1)) * draw.uniform(
        [0.7, 0.4, 0.1], [1, 0.9, 0.3], (83, 3)
    )
    beside = alone[:, None, :] * draw.uniform(0.4, 1.0, (83, 83, 3))
    beside *= ((gpus[:, None] == 1) & (gpus == 1))[:, :, None]
    return Profiles(gpus=gpus, alone=alone, beside=beside)


def of_classes(measured: Profiles, n_jobs: int) -> tuple[Case, np.ndarray]:
    profile = np.random.default_rng(0).integers(0, len(measured.gpus), n_jobs)
    gpus = measured.gpus[profile]
    case = Case(
        throughputs=measured.alone[profile],
        gpus=gpus,
        weights=np.ones(n_jobs),
        capacity=np.full(len(TYPES), gpus.sum() / LOAD / len(TYPES)),
    )
    return case, profile


def all_distinct(n_jobs: int, n_types: int) -> Case:
    draw = np.random.default_rng(n_jobs)
    gpus = draw.choice([1.0, 2.0, 4.0, 8.0], n_jobs)
    mix = draw.uniform(0.5, 1.5, n_types)
    speed = draw.lognormal(2, 1, (n_jobs, 1)) * draw.uniform(0.1, 1.0, (n_jobs, n_types))
    return Case(
        throughputs=speed,
        gpus=gpus,
        weights=draw.uniform(0.5, 2.0, n_jobs),
        capacity=mix / mix.sum() * gpus.sum() / LOAD,
    )


def needs_of(case: Case) -> Needs:
    """Return what `lepton` asks for, with every term in use."""
    draw, n_jobs = np.random.default_rng(11), len(case.gpus)
    full, n_types = case.throughputs.max(axis=1), len(case.capacity)
    fair = np.minimum(case.alone * draw.uniform(0, 2, n_jobs), full)
    due = full * draw.uniform(0.1, 1, n_jobs) * (draw.random(n_jobs) < 0.2)
    rank = draw.lognormal(0, 0.5, (n_jobs, 1))
    return Needs(
        speeds=case.throughputs,
        gpus=case.gpus,
        capacity=case.capacity,
        worth=rank * (case.throughputs / case.alone[:, None] - draw.uniform(0, 1, n_types)),
        fair=fair,
        unfair=20 * case.gpus * fair / full,
        due=due,
        missed=60 * case.gpus * due / full,
        guaranteed=case.capacity.sum() / 20 * np.ones(4),
        is_in=(draw.integers(0, 8, n_jobs) == np.arange(4)[:, None]).astype(float),
        counts=np.ones((4, n_types)),
        lacking=200.0,
    )


def dues(case: Case, n_due: int) -> tuple[Due, Case]:
    """Return jobs with deadlines of which not all can be met, and others without."""
    draw, rest = np.random.default_rng(13), slice(n_due, None)
    deadline_s = draw.uniform(3_600, 200_000, n_due)
    part = draw.uniform(0.3, 0.9, n_due)
    due = Due.of(
        case.throughputs[:n_due],
        case.gpus[:n_due],
        work=part * deadline_s * case.throughputs[:n_due].max(axis=1),
        deadline_s=deadline_s,
        capacity=case.capacity,
    )
    others = Case(
        throughputs=case.throughputs[rest],
        gpus=case.gpus[rest],
        weights=case.weights[rest],
        capacity=case.capacity,
    )
    return due, others
