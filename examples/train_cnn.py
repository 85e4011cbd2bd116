"""Train a convolutional network on handwritten digits, alone or as a gang of processes.

Reads RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT and LEPTON_CHECKPOINT_DIR, as the scheduler
sets them. Saves its work on an interval and on TERM (then exits 143), goes on from the newest
checkpoint, also with another number of processes. Ends with one line of JSON.

Elastic: the global batch, its order and its augmentation follow from the seed and the step
alone, and each process takes its share of it, so the number of processes changes the speed
and not what is learned.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from checkpoints import (
    EXIT_STOPPED,
    State,
    StopFlag,
    checkpoint_folder,
    load_latest_checkpoint,
    save_checkpoint,
    save_model,
)
from digits import SIDE, Digits, accuracy, bundled_digits, digits_cnn, read_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

PEER_TIMEOUT = timedelta(seconds=60)
LOG_EVERY_STEPS = 50
WARM_UP_FRACTION = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Gang:
    """The processes that train together, as one of them sees it."""

    rank: int
    world_size: int
    device: torch.device
    backend: str  # empty: alone

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files and talks."""
        return self.rank == 0


@dataclass(slots=True, kw_only=True)
class Run:
    """One training run: what it learns and how far it is."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    settings: dict[str, Any]  # a checkpoint of other settings is not ours to resume
    step: int = 0
    saved_step: int = -1
    saved_at_s: float = field(default_factory=time.monotonic)

    def state(self) -> State:
        """Return what a checkpoint holds."""
        return {
            "step": self.step,
            "settings": self.settings,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: State) -> None:
        """Go on from a checkpoint, or refuse one of a different run."""
        if state["settings"] != self.settings:
            raise SystemExit(f"the checkpoint is of {state['settings']}, not {self.settings}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = self.saved_step = state["step"]


def main() -> int:
    """Train, and return the exit code."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    folder = checkpoint_folder(args.checkpoint_dir)
    digits = read_digits(args.data) if args.data else bundled_digits()
    gang = join_gang(args.device)
    try:
        run = start_run(args, gang, folder)
        return train(args, gang, run, digits, folder)
    finally:
        if gang.backend:
            dist.destroy_process_group()


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64, help="global: shared by the gang")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="an .npz file; default: the bundled digits")
    parser.add_argument("--checkpoint-dir", type=Path, help="default: LEPTON_CHECKPOINT_DIR")
    parser.add_argument("--checkpoint-interval-s", type=float, default=5.0)
    parser.add_argument("--model-out", type=Path, help="write the trained model here")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    return parser.parse_args()


def join_gang(device: str) -> Gang:
    """Meet the other processes, and agree on devices and on how to talk."""
    rank = int(os.environ.get("RANK", "0"))
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    has_gpu = device == "auto" and torch.cuda.is_available()
    own_gpu = str(torch.cuda.get_device_properties(0).uuid) if has_gpu else ""
    if world_size == 1:
        return Gang(rank=0, world_size=1, device=_device(gpu=bool(own_gpu)), backend="")

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if host in {"127.0.0.1", "localhost"}:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.TCPStore(host, port, world_size, is_master=rank == 0, timeout=PEER_TIMEOUT)
    store.set(f"gpu-of-{rank}", own_gpu)
    gpus = [store.get(f"gpu-of-{peer}").decode() for peer in range(world_size)]
    # NCCL refuses two processes on one GPU, as when the scheduler shares it in fractions.
    backend = "nccl" if all(gpus) and len(set(gpus)) == world_size else "gloo"
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=PEER_TIMEOUT
    )
    return Gang(
        rank=rank, world_size=world_size, device=_device(gpu=all(gpus)), backend=backend
    )


def _device(*, gpu: bool) -> torch.device:
    return torch.device("cuda", 0) if gpu else torch.device("cpu")


def start_run(args: argparse.Namespace, gang: Gang, folder: Path | None) -> Run:
    """Make the model, or take it up where the newest checkpoint left it."""
    torch.manual_seed(args.seed)
    model = digits_cnn().to(gang.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.01)
    settings = {"batch": args.batch, "epochs": args.epochs, "seed": args.seed}
    run = Run(model=model, optimizer=optimizer, settings=settings)
    found = load_latest_checkpoint(folder) if gang.leads and folder else None
    shared = [found[1] if found else None]
    if gang.backend:  # one reader, so that all resume from the same step
        dist.broadcast_object_list(shared, src=0, device=gang.device)
    if shared[0] is not None:
        run.restore(shared[0])
    return run


def train(
    args: argparse.Namespace, gang: Gang, run: Run, digits: Digits, folder: Path | None
) -> int:
    """Take the steps that are left, and say what came of it."""
    batches = Batches(digits, batch=args.batch, seed=args.seed, gang=gang)
    n_steps = args.epochs * batches.per_epoch
    resumed_from_step, started_s = run.step, time.monotonic()
    stop = StopFlag()
    if gang.leads and resumed_from_step:
        print(f"resumed from step {resumed_from_step}", flush=True)
    try:
        finished = take_steps(args, gang, run, batches, n_steps, stop, folder)
    except RuntimeError as failure:
        # A peer is gone. Parameters change only after all agreed on a gradient, so ours are
        # those of the last whole step, and worth keeping.
        if gang.leads and gang.backend:
            keep(run, folder)
        print(f"rank {gang.rank} lost its gang at step {run.step}: {failure}", file=sys.stderr)
        return EXIT_STOPPED if stop.is_set else 1
    if gang.leads:
        keep(run, folder)
    if not finished:
        if gang.leads:
            print(f"stopped by TERM at step {run.step}, saved", flush=True)
        return EXIT_STOPPED
    if gang.leads:
        seconds = time.monotonic() - started_s
        report(args, gang, run, digits, seconds=seconds, resumed_from_step=resumed_from_step)
    if gang.backend:
        dist.barrier()
    return 0


def take_steps(
    args: argparse.Namespace,
    gang: Gang,
    run: Run,
    batches: "Batches",
    n_steps: int,
    stop: StopFlag,
    folder: Path | None,
) -> bool:
    """Train to the end, or until any process of the gang is told to stop; say which."""
    model: nn.Module = run.model
    if gang.backend:
        model = DistributedDataParallel(run.model)
    while run.step < n_steps:
        all_agree_to_stop = agree(gang, stop.is_set)
        for group in run.optimizer.param_groups:
            group["lr"] = args.learning_rate * schedule(run.step / n_steps)
        images, labels = batches.share(run.step)
        run.optimizer.zero_grad()
        # The mean over processes of sum/batch*n_processes is the mean over the whole batch,
        # also when the shares are not equal.
        loss = functional.cross_entropy(model(images), labels, reduction="sum")
        (loss * gang.world_size / args.batch).backward()
        run.optimizer.step()
        run.step += 1
        if gang.leads and run.step % LOG_EVERY_STEPS == 0:
            print(f"step {run.step}/{n_steps} loss {loss.item() / len(labels):.4f}", flush=True)
        if all_agree_to_stop():
            return run.step == n_steps
        if gang.leads and time.monotonic() - run.saved_at_s >= args.checkpoint_interval_s:
            keep(run, folder)
    return True


def agree(gang: Gang, wants_to_stop: bool) -> Callable[[], bool]:
    """Ask all processes whether to stop; the answer travels while the step is computed."""
    if not gang.backend:
        return lambda: wants_to_stop
    votes = torch.tensor([int(wants_to_stop)], device=gang.device)
    vote = dist.all_reduce(votes, op=dist.ReduceOp.MAX, async_op=True)

    def answer() -> bool:
        vote.wait()
        return bool(votes.item())

    return answer


def schedule(progress: float) -> float:
    """Return the learning rate's factor: a short warm-up, then half a cosine down to zero."""
    if progress < WARM_UP_FRACTION:
        return (progress + 0.01) / (WARM_UP_FRACTION + 0.01)
    return 0.5 * (
        1 + math.cos(math.pi * (progress - WARM_UP_FRACTION) / (1 - WARM_UP_FRACTION))
    )


def keep(run: Run, folder: Path | None) -> None:
    """Save a checkpoint, unless this step has one."""
    run.saved_at_s = time.monotonic()
    if folder is None or run.saved_step == run.step:
        return
    save_checkpoint(folder, run.step, run.state())
    run.saved_step = run.step


def report(
    args: argparse.Namespace,
    gang: Gang,
    run: Run,
    digits: Digits,
    *,
    seconds: float,
    resumed_from_step: int,
) -> None:
    """Measure the trained model on the held-out digits, save it and print the last line."""
    test = digits.test_images.to(gang.device), digits.test_labels.to(gang.device)
    score = accuracy(run.model, *test)
    if args.model_out:
        save_model(args.model_out, {"model": run.model.state_dict(), "accuracy": score})
    n_steps = run.step - resumed_from_step
    line = {
        "accuracy": round(score, 4),
        "steps": run.step,
        "steps_per_s": round(n_steps / seconds, 1),
        "resumed_from_step": resumed_from_step,
        "world_size": gang.world_size,
        "device": gang.device.type,
        "backend": gang.backend,
    }
    print(json.dumps(line), flush=True)


class Batches:
    """The global batches in order, and this process's share of each."""

    def __init__(self, digits: Digits, *, batch: int, seed: int, gang: Gang) -> None:
        if not gang.world_size <= batch <= len(digits.train_labels):
            raise SystemExit(f"--batch {batch} cannot be shared by {gang.world_size} processes")
        self.per_epoch = len(digits.train_labels) // batch
        self._images = functional.pad(digits.train_images, (1, 1, 1, 1)).squeeze(1)
        self._labels = digits.train_labels
        self._batch, self._seed, self._gang = batch, seed, gang
        self._epoch, self._order = -1, torch.empty(0)

    def share(self, step: int) -> tuple[Tensor, Tensor]:
        """Return this process's images, each shifted by up to one pixel, and their labels."""
        epoch, index = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            shuffled = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._epoch = epoch
            self._order = torch.randperm(len(self._labels), generator=shuffled)
        rows = self._order[index * self._batch : (index + 1) * self._batch]
        shaken = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        shifts = torch.randint(0, 3, (2, self._batch), generator=shaken)
        mine = slice(self._gang.rank, None, self._gang.world_size)
        rows, shifts = rows[mine], shifts[:, mine]
        pixels = torch.arange(SIDE)
        down = shifts[0][:, None, None] + pixels[None, :, None]
        right = shifts[1][:, None, None] + pixels[None, None, :]
        images = self._images[rows[:, None, None], down, right].unsqueeze(1)
        return images.to(self._gang.device), self._labels[rows].to(self._gang.device)


if __name__ == "__main__":
    sys.exit(main())
