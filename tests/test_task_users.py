"""As whom tasks run under a real daemon: reachable folders, and nobody is root by name."""

import asyncio
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from daemon_testing import running_daemon, shell_spec

from scheduler.config import SecurityConfig
from scheduler.daemon.security import Guard, token_line

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change users")


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that other users can pass through; pytest's own is closed to them."""
    with tempfile.TemporaryDirectory(prefix="lepton-", dir="/tmp") as name:
        Path(name).chmod(0o711)
        yield Path(name)


def tokens_of(home: Path, **tokens: str) -> dict[str, object]:
    path = home / "tokens"
    path.touch(mode=0o600)
    path.write_text("".join(f"{token_line(user, token)}\n" for user, token in tokens.items()))
    return {"security": {"token_file": str(path)}}


async def test_a_mapped_user_can_use_the_folders_of_its_tasks(home: Path):
    users = {"local": {"unix_users": {"ada": "nobody"}}}
    with running_daemon(home, **users, **tokens_of(home, ada="t0")) as daemon:
        async with daemon.client(token="t0") as client:
            script = 'id -u; echo 1 > "$LEPTON_CHECKPOINT_DIR/x"; echo 1 > "$LEPTON_TASK_DIR/x"'
            ended = await client.submit(shell_spec(script))
            job = await client.wait(ended.job_id)
            assert job.exit_code == 0, job.reason
        # Passing through is all: what lies there is not for other users' eyes.
        assert daemon.folder.stat().st_mode & 0o777 == 0o711
        for path in daemon.folder.glob("journal*"):
            assert path.stat().st_mode & 0o077 == 0, path


async def test_a_user_who_cannot_reach_the_folders_is_told_so(home: Path):
    await asyncio.to_thread(home.chmod, 0o700)
    users = {"local": {"unix_users": {"ada": "nobody"}}}
    with running_daemon(home, **users, **tokens_of(home, ada="t0")) as daemon:
        async with daemon.client(token="t0") as client:
            spec = shell_spec("true")
            (role,) = spec.roles
            role = replace(role, launch=replace(role.launch, working_dir="/"))
            answer = await client.submit(replace(spec, roles=(role,)))
            job = await client.wait(answer.job_id)
            assert "work: Permission denied" in job.reason


async def test_nobody_is_root_by_the_name_on_a_token(home: Path):
    with running_daemon(home, **tokens_of(home, root="t0")) as daemon:
        async with daemon.client(token="t0") as client:
            job = await client.wait((await client.submit(shell_spec("id -u"))).job_id)
            assert "no unix user is configured for submitter 'root'" in job.reason


def test_the_local_user_is_who_runs_the_daemon_whatever_the_environment_says(monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "mallory")
    guard = Guard(SecurityConfig(), tokens=None, credentials=None)
    assert guard.local.user == "root"
