"""Runs written by hand: a row per job, with what a simulation would have found out about it."""

from typing import Any

import numpy as np

from simulator.run import JobTable, PoolFigures, Run, ServiceFigures, Timeline

NONE = float("nan")

_TEXTS = {"name": "job", "submitter": "ada", "queue": "default", "kind": "training",
          "phase": "succeeded", "gpu_type": "T4"}  # fmt: skip
_WHOLE = {"n_tasks": 1, "priority": 0, "n_attempts": 1, "n_preemptions": 0, "n_failures": 0}
_MOMENTS = ("submitted_at_s", "started_at_s", "ended_at_s")


def job(submitted: float, started: float, ended: float, **fields: Any) -> dict[str, Any]:
    """Return a row: one GPU, all its time useful, alone it would have run as long as it did."""
    n_gpus = fields.get("n_gpus", 1.0)
    ran_s = ended - started
    held = 0.0 if np.isnan(ran_s) else n_gpus * ran_s
    row = {
        **_TEXTS,
        **_WHOLE,
        "n_gpus": n_gpus,
        "submitted_at_s": submitted,
        "started_at_s": started,
        "ended_at_s": ended,
        "deadline_at_s": NONE,
        "waited_s": started - submitted,
        "ran_s": 0.0 if np.isnan(ran_s) else ran_s,
        "alone_s": ran_s,
        "gpu_s": held,
        "useful_gpu_s": held,
        "lost_gpu_s": 0.0,
        "overhead_gpu_s": 0.0,
        "cost_usd": 0.0,
    }
    return {**row, **fields}


def run_of(
    rows: list[dict[str, Any]],
    *,
    gpus: float = 2.0,
    until_s: float | None = None,
    policy: str = "fifo",
    seed: int = 0,
    pools: tuple[PoolFigures, ...] = (),
    services: tuple[ServiceFigures, ...] = (),
    timeline: Timeline | None = None,
) -> Run:
    """Return a run of those jobs on a cluster of T4s; its timeline follows from the jobs."""
    for number, row in enumerate(rows):
        row.setdefault("key", str(number))
    table = {
        name: [row[name] for row in rows]
        if name in {*_TEXTS, "key"}
        else np.array([row[name] for row in rows], dtype=np.int64 if name in _WHOLE else float)
        for name in rows[0]
    }
    ends = [row["ended_at_s"] for row in rows if not np.isnan(row["ended_at_s"])]
    return Run(
        policy=policy,
        seed=seed,
        trace="by hand",
        from_s=0.0,
        until_s=until_s if until_s is not None else max(ends),
        jobs=JobTable(**table),
        timeline=timeline or _timeline(rows, gpus),
        pools=pools,
        services=services,
        counters={"cycles": 3.0},
    )


def _timeline(rows: list[dict[str, Any]], gpus: float) -> Timeline:
    moments = {row[name] for row in rows for name in _MOMENTS}
    at_s = np.array(sorted({0.0, *(m for m in moments if not np.isnan(m))}))

    def held(row: dict[str, Any]) -> np.ndarray:
        ended = np.inf if np.isnan(row["ended_at_s"]) else row["ended_at_s"]
        return (at_s >= row["started_at_s"]) & (at_s < ended)

    def waits(row: dict[str, Any]) -> np.ndarray:
        started = np.inf if np.isnan(row["started_at_s"]) else row["started_at_s"]
        return (at_s >= row["submitted_at_s"]) & (at_s < started)

    running = [held(row) for row in rows]
    n_gpus = [row["n_gpus"] for row in rows]
    queues = sorted({row["queue"] for row in rows})
    return Timeline(
        at_s=at_s,
        n_pending=sum(waits(row).astype(np.int64) for row in rows),
        n_running=sum(row.astype(np.int64) for row in running),
        gpus_up={"T4": np.full(len(at_s), gpus)},
        gpus_held={"T4": sum(n * row for n, row in zip(n_gpus, running, strict=True))},
        gpus_held_by_queue={
            queue: sum(
                n * held * (row["queue"] == queue)
                for n, held, row in zip(n_gpus, running, rows, strict=True)
            )
            for queue in queues
        },
        fragmentation=np.full(len(at_s), NONE),
    )
