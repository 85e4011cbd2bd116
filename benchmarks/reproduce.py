"""How fast published experiments run here, against the authors' own simulators.

Measured on a machine with two cores: Gavel's simulator takes 57 s of processor time for
max_min_fairness and 27 s for fifo_perf on the generated trace; the authors' simulator of FGD
53 min for one seed. Ours go through the scheduler: every job that Gavel moves to another type
of GPU is stopped and started again. Without the data (`--data`) nothing is measured.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from report import report

from simulator.reproduction import gavel
from simulator.reproduction.fgd import fill, nodes_of, pods_of

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
GAVEL = {
    "fifo_perf": (27.2, 0.5),
    "max_min_fairness_perf": (32.3, None),
    "max_min_fairness": (56.7, 5.0),
}
"""By policy: what Gavel's simulator takes on the generated trace, and our goal, in seconds."""
FGD_S, FGD_GOAL_S = 53 * 60.0, 5.0


def took_s(run: Callable[[], object]) -> float:
    before_s = time.process_time()
    run()
    return time.process_time() - before_s


def measure_gavel(folder: Path, policies: list[str]) -> None:
    experiment = gavel.EXPERIMENTS[-1]
    for policy in policies:
        theirs_s, goal_s = GAVEL[policy]
        report(
            benchmark="reproduce",
            case=f"Gavel's generated trace, {policy}",
            value=took_s(lambda policy=policy: gavel.run(experiment, policy, folder)),
            unit="s",
            better="lower",
            goal=goal_s,
            goal_of="value",
            baseline="Gavel's simulator, measured before",
            baseline_value=theirs_s,
            size="108 GPUs, jobs 500 to 999 of a trace without end",
        )


def measure_fgd(folder: Path) -> None:
    nodes, pods = nodes_of(folder), pods_of(folder, "default")
    report(
        benchmark="reproduce",
        case="openb, fgd, one seed",
        value=took_s(lambda: fill(nodes, pods, "fgd", seed=42)),
        unit="s",
        better="lower",
        goal=FGD_GOAL_S,
        goal_of="value",
        baseline="the authors' simulator, measured before",
        baseline_value=FGD_S,
        size="1,213 nodes, about 10,830 pods",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--policies", default="fifo_perf,max_min_fairness")
    args = parser.parse_args()
    if not (args.data / "gavel").is_dir():
        print(f"no traces in {args.data}: nothing to measure", file=sys.stderr)
        return
    measure_fgd(args.data / "openb")
    measure_gavel(args.data / "gavel", args.policies.split(","))


if __name__ == "__main__":
    main()
