"""What the local executor can be told."""

from collections.abc import Mapping
from dataclasses import dataclass, field

PASSED_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR")
"""Of the daemon's environment; everything else, tokens included, is kept from tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSettings:
    """How tasks run as processes of this machine."""

    unix_users: Mapping[str, str] = field(default_factory=dict)  # by submitter; "*": the rest
    # The submitter who is the daemon's own user; empty: of that name; None: nobody.
    local_user: str | None = ""
    log_max_bytes: int = 64 << 20  # of one log file before it is rotated
    log_files: int = 4  # kept per stream, the current one included
    max_grace_s: float = 600.0  # bounds what a job may ask for
    max_pids: int = 16_384  # threads per task, where cgroups limit them; 0: no limit
    sweep_s: float = 2.0  # between two looks for checkpoints
    passed_variables: tuple[str, ...] = PASSED_VARIABLES
    env: Mapping[str, str] = field(default_factory=dict)  # for every task; jobs override it
