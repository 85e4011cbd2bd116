"""`lepton daemon`: the composition root, which picks the policy, the executor and the clock."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scheduler.cli.errors import CommandError, ExitCode
from scheduler.config import DaemonConfig, load_config
from scheduler.core.errors import InvalidInput, SchedulerError
from scheduler.core.model import HOST, Node

if TYPE_CHECKING:
    from policies.locality import DataMap
    from scheduler.clock import Clock
    from scheduler.core.ports import Policy
    from scheduler.core.snapshot import Snapshot
    from scheduler.daemon.journal import Journal

log = logging.getLogger(__name__)

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def daemon(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            envvar="LEPTON_CONFIG",
            metavar="FILE",
            help="The YAML file to read.",
        ),
    ] = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Serve gRPC here instead.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keep the state here instead.")
    ] = None,
    log_level: Annotated[
        str, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")
    ] = "info",
) -> None:
    """Run the daemon in the foreground, until SIGTERM or Ctrl-C; tasks run on.

    Without a file it serves this machine on loopback, as one node.
    """
    try:
        chosen = _with_options(load_config(config), listen=listen, folder=folder)
        logging.basicConfig(level=log_level.upper(), format=_LOG_FORMAT)
    except (InvalidInput, ValueError) as error:
        raise CommandError(str(error), code=ExitCode.USAGE) from error
    run_daemon(chosen)


def run_daemon(config: DaemonConfig) -> None:
    """Run a daemon with this configuration until it is asked to stop."""
    from scheduler.clock import SystemClock
    from scheduler.daemon.journal import Journal
    from scheduler.daemon.security import Guard

    clock = SystemClock()
    try:
        Guard.from_config(config)  # before anything is touched: it would be refused later
    except InvalidInput as error:
        raise CommandError(str(error), code=ExitCode.USAGE) from error
    try:
        journal = Journal.open(config.folder, clock=clock)
    except (SchedulerError, OSError) as error:  # locked, damaged, too new, a full disk
        raise CommandError(str(error)) from error
    try:
        asyncio.run(_serve(config, journal=journal, clock=clock))
    except InvalidInput as error:
        raise CommandError(str(error), code=ExitCode.USAGE) from error
    except OSError as error:  # an address in use, say
        raise CommandError(str(error)) from error
    except Exception as error:
        log.exception("the daemon failed")
        raise CommandError(
            f"the daemon failed: {error!r}",
            hint="Nothing acknowledged is lost; running tasks are adopted at the next start.",
        ) from error
    finally:
        journal.close()


def _with_options(
    config: DaemonConfig, *, listen: str | None, folder: Path | None
) -> DaemonConfig:
    given = {"listen": listen, "folder": folder}
    changes = {name: value for name, value in given.items() if value is not None}
    return DaemonConfig.model_validate({**config.model_dump(), **changes})


async def _serve(config: DaemonConfig, *, journal: "Journal", clock: "Clock") -> None:
    from policies.registry import is_aimed
    from scheduler.daemon.daemon import Daemon
    from scheduler.daemon.rpc import serve_rpc
    from scheduler.daemon.serving import run_daemon as serve
    from scheduler.executors.local import LocalExecutor
    from scheduler.executors.local_settings import LocalSettings

    nodes = _nodes(config)
    settings = LocalSettings(
        unix_users=config.local.unix_users,
        local_user=None if config.security.identifies_callers else config.security.local_user,
        log_max_bytes=config.local.log_max_mib << 20,
        log_files=config.local.log_files,
        max_grace_s=config.local.max_grace_s,
    )
    daemon = Daemon(
        config,
        journal=journal,
        policy=policy_for(config),
        aim_policy=partial(policy_for, config) if is_aimed(config.score) else None,
        clock=clock,
        make_executor=lambda report: LocalExecutor(
            config.folder / "tasks", nodes, report=report, clock=clock, settings=settings
        ),
    )
    await serve(daemon, nodes, serve_rpc=serve_rpc)


def policy_for(config: DaemonConfig, snapshot: "Snapshot | None" = None) -> "Policy":
    """Return the policy that a configuration asks for, aimed at the jobs of the snapshot."""
    from policies.registry import in_rounds_of, policy_named, weighing
    from scheduler.core.ports import Backfilling

    policy = policy_named(
        config.policy, score=config.score, snapshot=snapshot, data=_data_map(config)
    )
    others = {name: policy_named(name) for name in config.queue_policies}
    policy = replace(policy, inside={**policy.inside, **others})
    terms = config.shares
    policy = weighing(policy, fair_within=terms.fair_within, cost=terms.cost)
    return replace(
        in_rounds_of(policy, config.round_s, time_limit_s=terms.solve_limit_s),
        levels=config.levels(),
        defragments=config.defragment,
        backfill=Backfilling(config.backfill.kind),
        backfill_depth=config.backfill.depth,
        patience_s=config.backfill.patience_s,
        starvation_s=config.backfill.starvation_s,
    )


def _data_map(config: DaemonConfig) -> "DataMap":
    """Return where data sets lie, by node labels."""
    from policies.locality import BYTES_PER_GBIT, DataMap
    from scheduler.core.topology import HOST_LABEL

    labels = {**{level.name: level.label for level in config.levels()}, HOST: HOST_LABEL}
    speeds = config.data.gbit_per_s
    return DataMap(
        places={
            name: tuple(
                tuple((label, part[level]) for level, label in labels.items() if level in part)
                for part in parts
            )
            for name, parts in config.data.sets.items()
        },
        bytes_per_s=tuple(
            (label, speeds[level] * BYTES_PER_GBIT)
            for level, label in labels.items()
            if level in speeds
        ),
    )


def _nodes(config: DaemonConfig) -> Sequence[Node]:
    """Return the declared nodes, or this machine as one."""
    declared = config.declared_nodes()
    if declared:
        return declared
    from scheduler.agent.discovery import discover_node

    return [discover_node()]
