"""The demo's story, scene by scene; each scene ends in claims that are checked.

What is claimed is asked of the daemon, of the files and of the processes, never assumed.
"""

import asyncio
import json
import re
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from demo_stage import DemoFailed, Jobs, Narrator, Stage, Step, claim, describe, phase_name
from rich.table import Table

from scheduler.client import Client
from scheduler.core.model import JobSpec, Launch, Role, Shape
from scheduler.job_file import load_job_files
from scheduler.wire import cluster_pb2 as pb

EXAMPLES = Path(__file__).resolve().parent
PASS_ACCURACY = 0.98
STEPS_BEFORE_URGENT = 100
REQUESTS_AT_ONCE = 32


@dataclass(slots=True, kw_only=True)
class Show:
    """The demo under way: its stage, its client and the jobs it has been promised."""

    stage: Stage
    narrator: Narrator
    client: Client
    jobs: Jobs
    promised: dict[str, str] = field(default_factory=dict)  # id acknowledged, to its name
    ids: dict[str, str] = field(default_factory=dict)  # name, to id of the job or array
    elements: dict[str, Sequence[str]] = field(default_factory=dict)  # name, to jobs' ids

    async def submit(self, spec: pb.JobSpec | JobSpec, *, request_id: str = "") -> str:
        """Submit, and remember what the daemon has acknowledged."""
        answer = await self.client.submit(spec, request_id=request_id)
        self.ids[spec.name] = answer.job_id
        self.elements[spec.name] = tuple(answer.job_ids) or (answer.job_id,)
        self.promised |= dict.fromkeys(self.elements[spec.name], spec.name)
        return answer.job_id

    async def printed(self, job_id: str, *, attempt: int | None = None) -> str:
        """Return what rank 0 of a job has printed, as the daemon tells it."""
        request = pb.ReadLogsRequest(
            job_id=job_id, attempt=attempt, stream=pb.ReadLogsRequest.STREAM_STDOUT
        )
        chunks = [chunk.data async for chunk in self.client.logs(request)]
        return b"".join(chunks).decode()

    async def until_printed(self, job_id: str, pattern: str, step: Step) -> str:
        """Follow a job's log until a line of it matches."""
        request = pb.ReadLogsRequest(
            job_id=job_id, follow=True, stream=pb.ReadLogsRequest.STREAM_STDOUT
        )
        text = ""
        async for chunk in self.client.logs(request):
            text += chunk.data.decode()
            step.progress(text.strip().splitlines()[-1] if text.strip() else "")
            if match := re.search(pattern, text):
                return match[0]
        raise DemoFailed(f"job {job_id} ended without printing {pattern!r}:\n{text}")


async def play(show: Show) -> str:
    """Tell the story from beginning to end, and return where the service is."""
    await submit_the_pipeline(show)
    await prepare_the_data(show)
    first_try = await train_as_a_gang(show)
    await let_something_urgent_preempt(show, first_try)
    await kill_the_daemon(show)
    await resume_the_training(show)
    url = await deploy(show)
    await ask_the_service(show, url)
    await teach_the_service(show, url)
    await show_the_jobs(show)
    return url


async def submit_the_pipeline(show: Show) -> None:
    """Submit the job file over gRPC, each step after the one that it needs."""
    with show.narrator.step("pipeline submitted over gRPC") as step:
        nodes = await show.client.nodes()
        claim(
            [len(node.gpus) for node in nodes] == [2, 2] and all(node.is_up for node in nodes),
            f"there are other nodes than declared: {nodes}",
        )
        for job in load_job_files(EXAMPLES / "pipeline" / "pipeline.yaml"):
            job.spec.dependencies.extend(
                after.to_dependency(show.ids[after.on]) for after in job.after_names
            )
            for role in job.spec.roles:
                role.launch.env["PIPELINE_DIR"] = str(show.stage.pipeline)
            await show.submit(job.spec)
        claim(len(show.promised) == 7, f"7 jobs were expected, not {show.promised}")
        waits = await show.client.explain(show.ids["deploy"])
        claim(waits.sentence, "a waiting job has no reason")
        step.fact(" → ".join(f"{name} ({job_id})" for name, job_id in show.ids.items()))
        step.fact(f"deploy: {waits.sentence}")


async def prepare_the_data(show: Show) -> None:
    """Wait until data is collected, cleaned and turned into tensors."""
    with show.narrator.step("data collected by an array, cleaned, preprocessed") as step:
        for name in ("collect", "clean", "preprocess"):
            step.progress(name)
            await show.jobs.until_succeeded(*show.elements[name])
        counts = json.loads((show.stage.pipeline / "cleaning.json").read_text())
        n_dropped = sum(counts["dropped"].values())
        claim(counts["kept"] == 1797 and n_dropped == 60, f"cleaning went wrong: {counts}")
        causes = ", ".join(f"{n} {cause}" for cause, n in counts["dropped"].items())
        step.fact(f"{counts['kept']} rows kept, {n_dropped} dropped: {causes}")


async def train_as_a_gang(show: Show) -> pb.Job:
    """Wait until two processes train together, and some way into it."""
    with show.narrator.step("a gang of two processes trains") as step:
        job = await show.jobs.until(show.ids["train"], is_running(2), what="two tasks run")
        processes = await show.stage.processes_of(job)
        claim(len(processes) == 2, f"the gang has processes {processes}")
        seen = await show.until_printed(job.id, rf"step {STEPS_BEFORE_URGENT}/.*", step)
        where = ", ".join(f"rank {task.rank} on {place(task)}" for task in job.tasks)
        step.fact(f"{where}; pids {', '.join(map(str, processes))}; {seen}")
        return job


async def let_something_urgent_preempt(show: Show, victim: pb.Job) -> None:
    """Submit a job that needs every GPU and may take them."""
    with show.narrator.step("a higher-priority job preempts it") as step:
        urgent = JobSpec(
            name="urgent",
            priority=100,
            roles=(
                Role(
                    name="worker",
                    count=2,
                    min_count=2,
                    max_count=2,
                    shape=Shape(gpus=2),
                    launch=Launch(
                        command=("python", "train_cnn.py", "--seed", "1", "--epochs", "15"),
                        working_dir=str(EXAMPLES),
                    ),
                ),
            ),
        )
        forecast = await show.client.dry_run(urgent)
        claim(
            list(forecast.preempts_job_ids) == [victim.id],
            f"the dry run would preempt {forecast.preempts_job_ids}",
        )
        submitted_s = time.monotonic()
        await show.submit(urgent)
        await show.jobs.until(
            victim.id, lambda job: job.preemptions == 1, what="it is preempted"
        )
        running = await show.jobs.until(
            show.ids["urgent"], is_running(2), what="the urgent gang runs"
        )
        took_s = time.monotonic() - submitted_s
        waiting = await show.jobs.until(
            victim.id, lambda job: job.phase == pb.JOB_PHASE_PENDING, what="it waits again"
        )
        claim(waiting.failures == 0, f"being preempted counted as a failure: {waiting}")
        saved = re.search(
            r"stopped by TERM at step (\d+), saved", await show.printed(victim.id, attempt=1)
        )
        claim(saved, "the training did not save its work when it was stopped")
        assert saved is not None
        explanation = await show.client.explain(victim.id)
        nodes = sorted({task.node for task in running.tasks})
        step.fact(f"a dry run foretold it: urgent would preempt job {victim.id}")
        step.fact(f"all 4 GPUs of {' and '.join(nodes)} are urgent's after {took_s:.1f} s")
        step.fact(f"train was {saved[0]}; now: {explanation.sentence}")


async def kill_the_daemon(show: Show) -> None:
    """Kill the daemon just after it has acknowledged something, and start it again."""
    with show.narrator.step("the daemon is killed with -9, and nothing is lost") as step:
        urgent = show.jobs.latest(show.ids["urgent"])
        before = await show.stage.processes_of(urgent)
        claim(len(before) == 2, f"the urgent gang has processes {before}")
        (array,) = load_job_files(EXAMPLES / "array.yaml")
        array.spec.array_size = 2
        await show.submit(array.spec, request_id="demo-array")
        claim(
            await show.stage.stop_daemon(signal.SIGKILL) == -signal.SIGKILL,
            "the daemon did not die of SIGKILL",
        )
        claim(
            await show.stage.processes_of(urgent) == before,
            "tasks died with the daemon",
        )
        started_s = time.monotonic()
        pid = await show.stage.start_daemon()
        ready_s = time.monotonic() - started_s

        listed = [job async for job in show.client.jobs()]
        claim(
            sorted(job.id for job in listed) == sorted(show.promised),
            f"promised were {show.promised}, there are {[describe(job) for job in listed]}",
        )
        again = await show.client.submit(array.spec, request_id="demo-array")
        claim(
            again.is_repeat and again.job_id == show.ids[array.spec.name],
            f"a repeated submit was taken for a new one: {again}",
        )
        adopted = await show.client.job(urgent.id)
        claim(
            is_running(2)(adopted) and adopted.attempt == 1,
            f"the urgent gang was not adopted: {describe(adopted)}",
        )
        claim(await show.stage.processes_of(adopted) == before, "the gang's processes changed")
        step.fact(f"ready again after {ready_s:.1f} s as pid {pid}")
        step.fact(
            f"all {len(listed)} acknowledged jobs are there once, the array it had just "
            "acknowledged too; submitting that again made nothing new"
        )
        step.fact(f"the urgent gang was adopted: still pids {', '.join(map(str, before))}")


async def resume_the_training(show: Show) -> None:
    """Wait until the urgent job is done and the training has gone on to its end."""
    with show.narrator.step("urgent ends; training resumes from its checkpoint") as step:
        (urgent,) = await show.jobs.until_succeeded(show.ids["urgent"])
        claim(urgent.attempt == 1, f"the urgent job ran {urgent.attempt} times")
        train_id = show.ids["train"]
        await show.jobs.until(train_id, is_running(2), what="it runs again")
        await show.until_printed(train_id, r'"accuracy".*', step)
        (train,) = await show.jobs.until_succeeded(train_id)
        claim(
            (train.attempt, train.preemptions, train.failures) == (2, 1, 0),
            f"attempts, preemptions and failures are not 2, 1 and 0: {train}",
        )
        first, last = [
            await show.printed(train_id, attempt=attempt) for attempt in (1, train.attempt)
        ]
        saved = int(re.findall(r"stopped by TERM at step (\d+)", first)[0])
        report = json.loads(last.strip().splitlines()[-1])
        claim(
            report["resumed_from_step"] == saved >= STEPS_BEFORE_URGENT,
            f"saved at step {saved}, but resumed from {report['resumed_from_step']}",
        )
        claim(report["world_size"] == 2, f"it was no gang: {report}")
        claim(report["accuracy"] >= PASS_ACCURACY, f"it learned too little: {report}")
        step.fact(
            f"resumed from step {saved} of {report['steps']}, "
            f"{report['steps_per_s']} steps/s over {report['backend']}, "
            f"accuracy {report['accuracy']:.2%} on held-out digits"
        )


async def deploy(show: Show) -> str:
    """Wait until the model has been judged and is served; return where."""
    with show.narrator.step("model evaluated and deployed") as step:
        (_evaluated, *_) = await show.jobs.until_succeeded(
            show.ids["evaluate"], *show.elements["breast-cancer"]
        )
        report = json.loads((show.stage.pipeline / "report.json").read_text())
        claim(report["accuracy"] >= PASS_ACCURACY, f"the evaluation says {report}")
        job = await show.jobs.until(show.ids["deploy"], is_running(1), what="it serves")
        seen = await show.until_printed(job.id, r"serving version 1 on (http://\S+)\n", step)
        url = seen.split()[-1]
        step.fact(
            f"{report['accuracy']:.2%} of {report['n_held_out']} held-out digits; "
            f"served on {url} by a quarter of {place(job.tasks[0])}"
        )
        return url


async def ask_the_service(show: Show, url: str) -> None:
    """Have every held-out digit read over HTTP."""
    with show.narrator.step("the service answers /infer with the trained model") as step:
        with np.load(show.stage.pipeline / "digits.npz") as arrays:
            images = (arrays["test_images"].reshape(-1, 64) * 16).tolist()
            labels = arrays["test_labels"]
        async with aiohttp.ClientSession(url) as http:
            started_s = time.monotonic()
            answers: list[dict[str, Any]] = []
            for first in range(0, len(images), REQUESTS_AT_ONCE):
                chunk = images[first : first + REQUESTS_AT_ONCE]
                answers += await asyncio.gather(
                    *(post(http, "/infer", instance=image) for image in chunk)
                )
            took_s = time.monotonic() - started_s
        accuracy = float(np.mean([a["label"] for a in answers] == labels))
        report = json.loads((show.stage.pipeline / "report.json").read_text())
        claim(
            abs(accuracy - report["accuracy"]) < 1e-3,
            f"{accuracy:.4f} over HTTP, but the evaluation said {report['accuracy']}",
        )
        step.fact(
            f"{len(answers)} requests, {len(answers) / took_s:.0f}/s, "
            f"accuracy {accuracy:.2%}: the model that was evaluated"
        )


async def teach_the_service(show: Show, url: str) -> None:
    """Fine-tune the served model, and see the next version answer."""
    with show.narrator.step("the service learns from /train while it serves") as step:
        with np.load(show.stage.pipeline / "digits.npz") as arrays:
            images = (arrays["train_images"].reshape(-1, 64)[:256] * 16).tolist()
            labels = arrays["train_labels"][:256].tolist()
        async with aiohttp.ClientSession(url) as http:
            taught = await post(http, "/train", instances=images, labels=labels, epochs=2)
            answer = await post(http, "/infer", instance=images[0])
            async with http.get("/metrics") as response:
                metrics = await response.text()
        claim(
            taught["model_version"] == answer["model_version"] == 2,
            f"taught {taught}, but {answer} answers",
        )
        claim("digits_model_version 2.0" in metrics, "the metrics do not tell the version")
        step.fact(f"version 2 answers, {taught['accuracy_after']:.2%} of what it was taught")


async def post(http: aiohttp.ClientSession, path: str, **body: object) -> dict[str, Any]:
    """Post JSON and return the answer."""
    async with http.post(path, json=body) as response:
        claim(response.status == 200, f"{path} says {response.status}")
        answer: dict[str, Any] = await response.json()
        return answer


async def show_the_jobs(show: Show) -> None:
    """Print what became of every job, and see that nothing ran more often than it should."""
    table = Table("id", "job", "phase", "tries", "waited", "ran", "GPU time", "where", "story")
    async for job in show.client.jobs():
        wanted = 2 if job.spec.name == "train" else 1
        claim(job.attempt == wanted, f"job {job.id} ran {job.attempt} times, not {wanted}")
        table.add_row(
            job.id,
            job.spec.name,
            phase_name(job),
            str(job.attempt),
            f"{job.waited_s:.1f} s",
            f"{job.ran_s:.1f} s",
            f"{job.gpu_s:.1f} s" if job.gpu_s else "",
            "\n".join(place(task) for task in job.tasks),
            "preempted once" if job.preemptions else job.reason,
        )
    show.narrator.console.print(table)


def is_running(n_tasks: int) -> Callable[[pb.Job], bool]:
    """Return a test for a job of which that many tasks run."""

    def holds(job: pb.Job) -> bool:
        running = [task for task in job.tasks if task.phase == pb.TASK_PHASE_RUNNING]
        return job.phase == pb.JOB_PHASE_RUNNING and len(running) == n_tasks

    return holds


def place(task: pb.Task) -> str:
    """Return where a task runs or ran."""
    gpus = ",".join(map(str, task.devices))
    return f"{task.node} GPU {gpus}" if gpus else task.node


async def end(show: Show) -> None:
    """Stop the service and the daemon in good order, and see that nothing is left."""
    with show.narrator.step("everything stops in good order") as step:
        deploy_id = show.ids["deploy"]
        await show.client.cancel(deploy_id)
        await show.jobs.until(
            deploy_id, lambda job: job.phase == pb.JOB_PHASE_CANCELLED, what="it stops"
        )
        claim(
            "answered everything" in await show.printed(deploy_id),
            "the service was cut off",
        )
        exit_code = await show.stage.stop_daemon(signal.SIGTERM)
        claim(exit_code == 0, f"the daemon exited with {exit_code}")
        claim(not (left := show.stage.survivors()), f"still running: {left}")
        step.fact("the service drained, the daemon exited 0, no process is left")
