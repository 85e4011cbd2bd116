"""`lepton info`: the daemon about itself, and about you."""

import typer

from scheduler.cli.settings import Settings


def info(ctx: typer.Context) -> None:
    """Show the daemon: its version, policy and load, and for whom it takes you.

    Examples:
      lepton info
      lepton info --server gpu-head:7070 -o json
    """
    from scheduler.cli.cluster_views import info_lines
    from scheduler.cli.connection import run, server_address
    from scheduler.cli.output import plain, print_data, print_lines
    from scheduler.clock import SystemClock

    settings = Settings.of(ctx)
    told = run(settings, lambda client: client.server_info(), what="asking")
    if settings.output.is_for_people:
        server = server_address(settings)
        print_lines(info_lines(told, server, SystemClock().now_s()))
    else:
        print_data(plain(told), settings.output)
