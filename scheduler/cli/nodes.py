"""`lepton nodes`, `node`, `cordon`, `uncordon` and `drain`: the machines."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

import typer

from scheduler.cli.completion import complete_node
from scheduler.cli.settings import Settings

if TYPE_CHECKING:
    from scheduler.client import Client
    from scheduler.wire import cluster_pb2 as pb

Nodes = Annotated[
    list[str],
    typer.Argument(metavar="NODE", help="Names of nodes.", autocompletion=complete_node),
]


def nodes(ctx: typer.Context) -> None:
    """List nodes: their state and what they have free.

    Examples:
      lepton nodes
      lepton nodes -o wide
      lepton nodes -o json | jq -r '.nodes[] | select(.is_up|not) | .name'
    """
    import sys

    from scheduler.cli.cluster_views import nodes_lines
    from scheduler.cli.connection import run
    from scheduler.cli.output import Format, plain, print_data, print_lines
    from scheduler.cli.terminal import note, width_of

    settings = Settings.of(ctx)
    found = run(settings, lambda client: client.nodes(), what="listing nodes")
    if not settings.output.is_for_people:
        print_data({"nodes": [plain(node) for node in found]}, settings.output)
    elif not found:
        note("No nodes. (Declare them in the daemon's configuration.)")
    else:
        is_wide = settings.output is Format.WIDE
        print_lines(nodes_lines(found, width=width_of(sys.stdout), is_wide=is_wide))


def node(ctx: typer.Context, names: Nodes) -> None:
    """Show nodes: what they have, what is free, and their GPUs one by one.

    Examples:
      lepton node gpu-07
      lepton node gpu-07 -o yaml
    """
    import sys

    from scheduler.cli.cluster_views import node_lines
    from scheduler.cli.connection import run
    from scheduler.cli.output import plain, print_data, print_lines
    from scheduler.cli.terminal import width_of
    from scheduler.clock import SystemClock

    settings = Settings.of(ctx)
    by_name = {
        node.name: node
        for node in run(settings, lambda client: client.nodes(), what="looking it up")
    }
    found = [_named(by_name, name) for name in names]
    if not settings.output.is_for_people:
        data = [plain(node) for node in found]
        print_data(data[0] if len(data) == 1 else {"nodes": data}, settings.output)
        return
    for number, node in enumerate(found):
        lines = node_lines(node, SystemClock().now_s(), width=width_of(sys.stdout))
        print_lines(["", *lines] if number else lines)


def _named(by_name: "dict[str, pb.Node]", name: str) -> "pb.Node":
    from difflib import get_close_matches

    from scheduler.cli.errors import CommandError

    if name in by_name:
        return by_name[name]
    near = get_close_matches(name, by_name, n=1)
    raise CommandError(
        f"there is no node {name}",
        hint=f"Did you mean {near[0]}?" if near else "`lepton nodes` lists them.",
    )


def cordon(ctx: typer.Context, names: Nodes) -> None:
    """Close nodes to new tasks; what runs there goes on.

    Examples:
      lepton cordon gpu-07
      lepton uncordon gpu-07
    """
    _change(ctx, names, lambda client, name: client.cordon(name), "is closed to new tasks.")


def uncordon(ctx: typer.Context, names: Nodes) -> None:
    """Open nodes again after a cordon or a drain.

    Examples:
      lepton uncordon gpu-07
    """
    _change(ctx, names, lambda client, name: client.uncordon(name), "is open again.")


def drain(ctx: typer.Context, names: Nodes) -> None:
    """Empty nodes: close them, and stop their tasks so that their jobs go elsewhere.

    Tasks get their grace to save their work. `lepton node NODE` shows when it is empty.

    Examples:
      lepton drain gpu-07
      lepton drain gpu-07 gpu-08
    """
    _change(ctx, names, lambda client, name: client.drain(name), "is closed")


def _change(
    ctx: typer.Context,
    names: list[str],
    change: "Callable[[Client, str], Awaitable[pb.Node]]",
    sentence: str,
) -> None:
    from scheduler.cli.connection import run
    from scheduler.cli.output import plain, print_data
    from scheduler.cli.terminal import say

    settings = Settings.of(ctx)

    async def work(client: "Client") -> "list[pb.Node]":
        return [await change(client, name) for name in names]

    changed = run(settings, work, what="waiting for the daemon")
    if not settings.output.is_for_people:
        data = [plain(node) for node in changed]
        print_data(data[0] if len(data) == 1 else {"nodes": data}, settings.output)
        return
    for node in changed:
        tail = _tasks_left(node) if sentence == "is closed" else ""
        say(f"Node {node.name} {sentence}{tail}")


def _tasks_left(node: "pb.Node") -> str:
    if not node.n_tasks:
        return " and empty."
    are = "task is" if node.n_tasks == 1 else "tasks are"
    return f"; {node.n_tasks} {are} asked to stop."
