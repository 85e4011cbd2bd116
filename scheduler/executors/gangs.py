"""What the members of a gang must agree on: ports, and who is where.

Decided once per (job, attempt), before any member starts, and kept in `gang.json` in the folder
of the attempt: a member that is started after a restart of the daemon reads what its peers got.
"""

import secrets
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from scheduler.core.model import NodeName, TaskId
from scheduler.core.plan import Start
from scheduler.executors.task_folders import write_file

FIRST_PORT, LAST_PORT = 20_000, 32_767
"""Below the kernel's ephemeral ports, so that no outgoing connection takes one meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One task of a gang, as its peers need to know it."""

    role: str
    index: int
    rank: int
    node: NodeName
    port: int  # free when the gang was decided: for a service the task may offer


@dataclass(frozen=True, slots=True, kw_only=True)
class Gang:
    """The tasks of one attempt of a job."""

    master_port: int
    members: tuple[Member, ...] = ()  # by rank

    def member(self, task: TaskId) -> Member | None:
        """Return the task's own entry."""
        own = (task.role, task.index)
        return next((m for m in self.members if (m.role, m.index) == own), None)

    def neighbours(self, member: Member) -> list[Member]:
        """Return the members on the same node, itself included, by rank."""
        return [other for other in self.members if other.node == member.node]

    def nodes(self) -> list[NodeName]:
        """Return the nodes of the gang, by their lowest rank."""
        return list(dict.fromkeys(member.node for member in self.members))


class Ports:
    """Gives out ports that no live gang of this executor has and nobody listens on."""

    def __init__(self) -> None:
        self._taken: set[int] = set()
        # A random start, for other executors on this machine choose from the same range.
        self._next = FIRST_PORT + secrets.randbelow(LAST_PORT - FIRST_PORT)

    def take(self) -> int:
        """Return a free port. Raises `OSError` if there is none."""
        for _ in range(LAST_PORT - FIRST_PORT + 1):
            port = self._next
            self._next = port + 1 if port < LAST_PORT else FIRST_PORT
            if port not in self._taken and _is_free(port):
                self._taken.add(port)
                return port
        raise OSError(f"no free port from {FIRST_PORT} to {LAST_PORT}")

    def reserve(self, gang: Gang) -> None:
        """Keep the ports of a gang that is known from its file."""
        self._taken.update(_ports_of(gang))

    def release(self, gang: Gang) -> None:
        """Let others have the ports of a gang that has ended."""
        self._taken.difference_update(_ports_of(gang))


def form_gang(folder: Path, starts: Iterable[Start], ports: Ports) -> Gang:
    """Return the gang that `folder` keeps, with the starts among its members."""
    known = read_gang(folder)
    if known is not None:
        ports.reserve(known)
    gang = known or Gang(master_port=ports.take())
    joining = [start.task for start in starts if gang.member(start.task.id) is None]
    if joining:
        added = [
            Member(
                role=t.id.role, index=t.id.index, rank=t.rank, node=t.node, port=ports.take()
            )
            for t in joining
        ]
        members = sorted((*gang.members, *added), key=lambda m: (m.rank, m.role, m.index))
        gang = Gang(master_port=gang.master_port, members=tuple(members))
        write_file(folder / "gang.json", msgspec.json.encode(gang))
    return gang


def read_gang(folder: Path) -> Gang | None:
    """Return the gang that a folder keeps, if it keeps one."""
    try:
        return msgspec.json.decode((folder / "gang.json").read_bytes(), type=Gang)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _ports_of(gang: Gang) -> set[int]:
    return {gang.master_port, *(member.port for member in gang.members)}


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
