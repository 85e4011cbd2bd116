"""A real daemon places by the score that its configuration names."""

from pathlib import Path

import pytest
from daemon_testing import running_daemon, shell_spec, wait_for

from scheduler.client import Client
from scheduler.config import DaemonConfig
from scheduler.wire.cluster_pb2 import JOB_PHASE_RUNNING

NODES = [
    {"name": name, "cpus": 4, "gpus": 2, "gpu_type": "T4", "gpu_memory_mib": 16_000}
    for name in ("one", "two")
]


async def node_of(client: Client, job_id: str) -> str:
    async def look() -> str:
        job = await client.job(job_id)
        return job.tasks[0].node if job.phase == JOB_PHASE_RUNNING else ""

    return await wait_for(look, what=f"job {job_id} runs")


@pytest.mark.parametrize(
    ("score", "n_nodes"), [("best-fit", 1), ("worst-fit", 2), ("fgd", 1), ("lepton", 1)]
)
async def test_jobs_go_where_the_score_says(tmp_path: Path, score: str, n_nodes: int) -> None:
    with running_daemon(tmp_path, nodes=NODES, score=score) as daemon:
        async with daemon.client() as client:
            nodes = set()
            for _ in range(2):
                submitted = await client.submit(shell_spec("sleep 60", gpus=1))
                nodes.add(await node_of(client, submitted.job_id))
    assert len(nodes) == n_nodes


def test_an_unknown_score_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match=r"must be one of best-fit, worst-fit.*lepton"):
        DaemonConfig(score="best")
