"""Show on this machine what Lepton is for, and prove every word of it.

A daemon, two nodes of two logical GPUs each, and real jobs over gRPC: a pipeline from raw data
to a service, whose training is a gang, is preempted by something urgent, survives a `kill -9`
of the daemon and resumes from its checkpoint. Exits 0 only if all of it truly happened.

`make demo` runs it; with KEEP=1 it leaves everything running to play with.
"""

import argparse
import asyncio
import signal
import sys
import time
import traceback
from pathlib import Path

from demo_stage import LEPTON, DemoFailed, Jobs, Narrator, Stage
from demo_story import EXAMPLES, Show, end, play

from scheduler.client import Client, ClientError

DEADLINE_S = 170.0
LOG_LINES = 20


async def perform(stage: Stage, narrator: Narrator, *, keep: bool) -> str:
    """Start, play and end, within the deadline; return where the service is, or was."""
    this = asyncio.current_task()
    assert this is not None
    # As Ctrl-C does.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    try:
        async with asyncio.timeout(DEADLINE_S):
            await start(stage, narrator)
            async with Client(stage.server) as client, asyncio.TaskGroup() as tasks:
                jobs = Jobs(client)
                show = Show(stage=stage, narrator=narrator, client=client, jobs=jobs)
                following = tasks.create_task(
                    jobs.follow((await client.server_info()).revision), name="follow"
                )
                url = await play(show)
                if not keep:
                    await end(show)
                following.cancel()
            return url
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


def tell_failure(error: BaseException, stage: Stage, narrator: Narrator) -> None:
    """Say what went wrong, and show the ends of the logs that may tell why."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    narrator.console.print("[red]The demo failed:[/]", end=" ")
    if isinstance(error, DemoFailed | ClientError):
        narrator.tell(str(error))
    else:
        narrator.tell("".join(traceback.format_exception(error)))
    for path in stage.bad_logs():
        narrator.tell(f"\n--- {path}")
        narrator.tell("\n".join(path.read_text(errors="replace").splitlines()[-LOG_LINES:]))


def how_to_play(stage: Stage, url: str) -> str:
    """Return what to type while everything is left running."""
    return f"""
Everything is left running. To play with it:
  export LEPTON_SERVER={stage.server} PATH={LEPTON.parent}:$PATH
  lepton jobs --all
  lepton top
  lepton submit examples/train.yaml --wait
  curl {url}/metrics
To stop it:
  {sys.executable} {EXAMPLES / "demo.py"} --stop --folder {stage.folder}"""


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
        url = asyncio.run(perform(stage, narrator, keep=args.keep))
        is_good = True
    except (KeyboardInterrupt, asyncio.CancelledError):
        narrator.tell("interrupted")
        return 130
    except Exception as error:
        tell_failure(error, stage, narrator)
        return 1
    finally:
        if not (is_good and args.keep):
            stage.end_everything()
    narrator.tell(f"\nAll of it happened, in {narrator.elapsed_s:.0f} s.")
    if args.keep:
        narrator.tell(how_to_play(stage, url))
    return 0


if __name__ == "__main__":
    sys.exit(main())
