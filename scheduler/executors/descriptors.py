"""Waiting for processes without a thread: descriptors that the event loop watches."""

import asyncio
import os

from scheduler.executors.reaper import start_ticks
from scheduler.executors.task_folders import ProcessRecord


def open_reaper(record: ProcessRecord) -> int:
    """Return a descriptor that becomes readable when the reaper ends.

    Raises `ProcessLookupError` if it is gone, another `OSError` if the kernel has none to give.
    """
    pidfd = os.pidfd_open(record.reaper_pid)
    try:
        # The descriptor is of whoever has the pid now, and stays so: compare after opening.
        if start_ticks(record.reaper_pid) == record.reaper_start:
            return pidfd
    except (FileNotFoundError, ProcessLookupError):
        pass
    os.close(pidfd)
    raise ProcessLookupError(f"process {record.reaper_pid} is gone")


async def text_until_closed(fd: int) -> str:
    """Return what comes through a pipe until its last writer is gone; close it."""
    loop = asyncio.get_running_loop()
    closed: asyncio.Future[None] = loop.create_future()
    text = bytearray()

    def read() -> None:
        data = os.read(fd, 4096)
        text.extend(data)
        if not data and not closed.done():
            closed.set_result(None)

    loop.add_reader(fd, read)
    try:
        await closed
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    return text.decode(errors="replace")
