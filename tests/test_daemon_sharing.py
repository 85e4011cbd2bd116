"""A real daemon puts two jobs on one GPU that say how fast they are beside each other."""

from pathlib import Path

from daemon_testing import running_daemon, shell_spec, wait_for

from scheduler.client import Client
from scheduler.core.model import SharedThroughput
from scheduler.wire.cluster_pb2 import JOB_PHASE_PENDING, JOB_PHASE_RUNNING, Job

NODE = {"name": "gpu", "cpus": 4, "gpus": 1, "gpu_type": "T4", "gpu_memory_mib": 16_000}
SCRIPT = 'echo "$CUDA_VISIBLE_DEVICES" > "$LEPTON_CHECKPOINT_DIR/device"; sleep 60'


async def running(client: Client, job_id: str) -> Job:
    async def look() -> Job | None:
        job = await client.job(job_id)
        return job if job.phase == JOB_PHASE_RUNNING and job.tasks[0].started_at_s else None

    return await wait_for(look, what=f"job {job_id} runs")


async def test_two_jobs_meet_on_one_gpu_and_a_third_waits(tmp_path: Path) -> None:
    def spec(profile: str, other: str):
        measured = SharedThroughput(gpu_type="T4", beside=other, per_s=0.9)
        about = {"gpus": 1, "profile": profile, "shared_throughputs": (measured,)}
        return shell_spec(SCRIPT, name=profile, **about)

    with running_daemon(tmp_path, nodes=[NODE], policy="max_min_fairness_packed") as daemon:
        async with daemon.client() as client:
            one = await client.submit(spec("resnet", "lm"))
            other = await client.submit(spec("lm", "resnet"))
            places = [
                [(task.node, tuple(task.devices)) for task in job.tasks]
                for job in (
                    await running(client, one.job_id),
                    await running(client, other.job_id),
                )
            ]
            assert places == [[("gpu", (0,))]] * 2
            third = await client.submit(shell_spec("true", gpu_milli=100))
            await client.wait((await client.submit(shell_spec("true"))).job_id)
            assert (await client.job(third.job_id)).phase == JOB_PHASE_PENDING
            shown = (await client.job(other.job_id)).spec
            assert (shown.profile, shown.shared_throughputs[0].beside) == ("lm", "resnet")
