"""Show on this machine what Lepton is for, and prove every word of it.

A daemon, two nodes of two logical GPUs each, and real jobs over gRPC: a pipeline from raw data
to a service, whose training is a gang, is preempted by something urgent, survives a `kill -9`
of the daemon and resumes from its checkpoint. Exits 0 only if all of it truly happened.

`make demo` runs it; with KEEP=1 it leaves everything running to play with.
"""

import argparse
import asyncio
import sys
import time
from pathlib import Path

from demo_stage import DemoFailed, Jobs, Narrator, Stage
from demo_story import EXAMPLES, Show, end, play, show_the_jobs

from scheduler.client import Client, ClientError

DEADLINE_S = 170.0


async def perform(stage: Stage, narrator: Narrator, *, keep: bool) -> None:
    """Start, play and end, within the deadline."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            await start(stage, narrator)
            async with Client(stage.server) as client, asyncio.TaskGroup() as tasks:
                jobs = Jobs(client)
                show = Show(stage=stage, narrator=narrator, client=client, jobs=jobs)
                following = tasks.create_task(
                    jobs.follow((await client.server_info()).revision), name="follow"
                )
                await play(show)
                await show_the_jobs(show)
                if not keep:
                    await end(show)
                following.cancel()
    except TimeoutError:
        raise DemoFailed(f"it took longer than {DEADLINE_S:g} s") from None


async def start(stage: Stage, narrator: Narrator) -> None:
    """Bring the daemon up, with nothing from before."""
    with narrator.step("daemon up") as step:
        stage.clear()
        started_s = time.monotonic()
        pid = await stage.start_daemon()
        step.fact(
            f"pid {pid} serves on {stage.server}, "
            f"{time.monotonic() - started_s:.1f} s after it was started"
        )


def show_logs(stage: Stage, narrator: Narrator) -> None:
    """Print the ends of the logs that may tell what went wrong."""
    logs = [stage.log, *sorted(stage.state.glob("tasks/jobs/*/*/*/std*.log"))]
    for path in logs:
        text = path.read_text(errors="replace").rstrip() if path.exists() else ""
        if text:
            narrator.tell(f"\n--- {path}")
            narrator.tell("\n".join(text.splitlines()[-15:]))


def how_to_play(stage: Stage) -> str:
    """Return what to type while everything is left running."""
    bin_folder = Path(sys.executable).parent
    return f"""
Everything is left running. To play with it:
  export LEPTON_SERVER={stage.server} PATH={bin_folder}:$PATH
  lepton jobs --all
  lepton top
  lepton submit examples/train.yaml --wait
To stop it:
  {sys.executable} examples/demo.py --stop --folder {stage.folder}"""


def first_cause(error: BaseException) -> BaseException:
    """Return what really happened inside groups of errors."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def main() -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--keep", action="store_true", help="leave everything running")
    parser.add_argument("--stop", action="store_true", help="end what --keep left running")
    parser.add_argument("--folder", type=Path, default=EXAMPLES.parent / ".demo")
    args = parser.parse_args()
    stage, narrator = Stage(args.folder), Narrator()
    if args.stop:
        stage.end_everything()
        return 0
    is_good = False
    try:
        asyncio.run(perform(stage, narrator, keep=args.keep))
        is_good = True
    except* (DemoFailed, ClientError, OSError) as errors:
        narrator.console.print("[red]The demo failed:[/]", end=" ")
        narrator.tell(str(first_cause(errors)))
        show_logs(stage, narrator)
    finally:
        if not (is_good and args.keep):
            stage.end_everything()
    if is_good and args.keep:
        narrator.tell(how_to_play(stage))
    if is_good:
        narrator.tell(f"\nAll of it happened, in {narrator.elapsed_s:.0f} s.")
    return int(not is_good)


if __name__ == "__main__":
    sys.exit(main())
