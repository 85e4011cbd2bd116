"""As which user of this machine a task runs.

The rule, in order: a submitter named in `unix_users` gets that user, the local user gets the
daemon's own, anybody else gets the user of "*". Without one, a daemon that is root refuses,
because a remote caller would silently become root; an ordinary user's daemon runs the task as
that user, who could do no more anyway. Where callers show who they are nobody is the local
user: being called "root" on a token or certificate does not make one root.
"""

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass

ANYBODY = "*"


class NoAccount(Exception):
    """The submitter's tasks may not run here; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A user of this machine. `is_own`: the daemon's, so nothing has to be changed."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    is_own: bool

    @property
    def owner(self) -> tuple[int, int] | None:
        """Whom folders must be given to; None if they are the user's already."""
        return None if self.is_own else (self.uid, self.gid)


def account_for(
    submitter: str, *, unix_users: Mapping[str, str], local_user: str | None
) -> Account:
    """Return the user that a submitter's tasks run as. Raises `NoAccount`."""
    name = unix_users.get(submitter)
    if name is None and _is_local(submitter, local_user):
        return own_account()
    name = name or unix_users.get(ANYBODY)
    if name:
        return _named(name)
    if os.geteuid() == 0:
        raise NoAccount(
            f"the daemon is root and no unix user is configured for submitter {submitter!r}"
        )
    return own_account()


def _is_local(submitter: str, local_user: str | None) -> bool:
    return local_user is not None and submitter == (local_user or own_account().name)


def own_account() -> Account:
    """Return the user that runs this process."""
    uid = os.geteuid()
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:  # a container may run as a number without a name
        name, home = str(uid), "/"
    else:
        name, home = entry.pw_name, entry.pw_dir
    home = os.environ.get("HOME", home)
    return Account(name=name, uid=uid, gid=os.getegid(), groups=(), home=home, is_own=True)


def _named(name: str) -> Account:
    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        raise NoAccount(f"the configured unix user {name!r} does not exist") from error
    if entry.pw_uid == os.geteuid():
        return own_account()
    if os.geteuid() != 0:
        raise NoAccount(f"only a daemon that is root can run tasks as {name!r}")
    return Account(
        name=name,
        uid=entry.pw_uid,
        gid=entry.pw_gid,
        groups=tuple(os.getgrouplist(name, entry.pw_gid)),
        home=entry.pw_dir,
        is_own=False,
    )
