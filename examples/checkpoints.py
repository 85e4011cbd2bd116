"""Checkpoints that survive `kill -9`, and the flag that says it is time to make one.

A checkpoint is one file, `step-00000120-9f86d081884c.pt`. The last part is the beginning of
the SHA-256 of what is in it, so that a torn or damaged file is passed over on resuming. The
training programs share this module; `serve.py` and `pipeline/evaluate.py` read what it wrote.
"""

import hashlib
import io
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch

EXIT_STOPPED = 128 + signal.SIGTERM
"""What training exits with once it has saved its work because TERM asked it to: 143, which a
shell also reports for a process that TERM ended. Run again, it goes on where it stopped."""

KEPT = 2
"""Checkpoints kept: the newest, and one to fall back on should that be damaged."""

NAME = re.compile(r"step-(\d{8})-([0-9a-f]{12})\.pt")

State = dict[str, Any]


class StopFlag:
    """Whether TERM has arrived since this was made; until then TERM kills as usual."""

    def __init__(self) -> None:
        self.is_set = False
        signal.signal(signal.SIGTERM, self._set)

    def _set(self, signal_number: int, frame: FrameType | None) -> None:
        self.is_set = True


def checkpoint_folder(flag: Path | None) -> Path | None:
    """Return where to keep checkpoints: what the user said, else where the scheduler says."""
    if flag is not None:
        return flag
    folder = os.environ.get("LEPTON_CHECKPOINT_DIR")
    return Path(folder) if folder else None


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write a checkpoint that is there whole or not at all, and drop the oldest ones."""
    content = _to_bytes(state)
    path = folder / f"step-{step:08d}-{hashlib.sha256(content).hexdigest()[:12]}.pt"
    _write_atomically(path, content)
    for stale in _newest_first(folder)[KEPT:]:
        stale.unlink(missing_ok=True)
    return path


def load_latest_checkpoint(folder: Path) -> tuple[int, State] | None:
    """Return step and state of the newest undamaged checkpoint, or None."""
    for path in _newest_first(folder):
        match = NAME.fullmatch(path.name)
        content = path.read_bytes()
        if match and hashlib.sha256(content).hexdigest().startswith(match[2]):
            return int(match[1]), _from_bytes(content)
        print(f"passed over {path}: damaged", flush=True)
    return None


def save_model(path: Path, state: Mapping[str, Any]) -> None:
    """Write a trained model to one file, whole or not at all."""
    _write_atomically(path, _to_bytes(state))


def load_model(path: Path) -> State:
    """Return what `save_model` wrote, or the newest checkpoint if `path` is a folder."""
    if not path.is_dir():
        return _from_bytes(path.read_bytes())
    latest = load_latest_checkpoint(path)
    if latest is None:
        raise FileNotFoundError(f"no checkpoint in {path}")
    return latest[1]


def _newest_first(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        filter(lambda path: NAME.fullmatch(path.name), folder.iterdir()), reverse=True
    )


def _to_bytes(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def _from_bytes(content: bytes) -> State:
    state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # without it a power cut may forget the rename
    finally:
        os.close(folder)
