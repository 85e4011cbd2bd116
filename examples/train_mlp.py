"""Train small models on real tables, and compare each with a baseline from the textbook.

`--model mlp` classifies breast cancer (or wines) and is held against logistic regression;
`--model linear` predicts the course of diabetes and is held against ordinary least squares,
solved exactly. Checkpoints work as in `train_cnn.py`: on an interval, on TERM (exit 143), and
resumed from. Ends with one line of JSON; exits 1 if the model is worse than its baseline.

As an element of an array the seed is LEPTON_ARRAY_INDEX, so `array.yaml` repeats the
experiment on other splits.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from checkpoints import (
    EXIT_STOPPED,
    StopFlag,
    checkpoint_folder,
    load_latest_checkpoint,
    save_checkpoint,
    save_model,
)
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

Floats = NDArray[np.float64]

CLASS_TABLES = {"breast_cancer": load_breast_cancer, "wine": load_wine}
TOLERANCE = {"mlp": 0.04, "linear": 0.005}
"""How much worse than its baseline a model may be: accuracy for one, R squared for the other.
A few rows of 114 differ between splits; least squares is the optimum that descent tends to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Standardised columns and what to predict from them, to train on and held out."""

    train_x: Floats
    train_y: Floats
    test_x: Floats
    test_y: Floats


def main() -> int:
    """Train, compare and return the exit code."""
    args = parse_arguments()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    table_name = "diabetes" if args.model == "linear" else args.table
    table = load_table(table_name, seed=args.seed)
    n_outputs = 1 if args.model == "linear" else int(table.train_y.max()) + 1
    model = make_model(args.model, n_inputs=table.train_x.shape[1], n_outputs=n_outputs)
    folder = checkpoint_folder(args.checkpoint_dir)
    started_s = time.monotonic()
    resumed_from_step, step = fit(args, model, table, folder)
    if step < args.steps:
        print(f"stopped by TERM at step {step}, saved", flush=True)
        return EXIT_STOPPED

    score, baseline = compare(args.model, model, table)
    if args.model_out:
        save_model(args.model_out, {"model": model.state_dict(), "score": score})
    line = {
        "model": args.model,
        "table": table_name,
        "measure": "r_squared" if args.model == "linear" else "accuracy",
        "score": round(score, 4),
        "baseline": round(baseline, 4),
        "steps": step,
        "steps_per_s": round((step - resumed_from_step) / (time.monotonic() - started_s), 1),
        "resumed_from_step": resumed_from_step,
        "seed": args.seed,
    }
    print(json.dumps(line), flush=True)
    return int(score < baseline - TOLERANCE[args.model])


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", choices=("mlp", "linear"), default="mlp")
    parser.add_argument("--table", choices=tuple(CLASS_TABLES), default="breast_cancer")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument(
        "--seed", type=int, default=int(os.environ.get("LEPTON_ARRAY_INDEX") or 0)
    )
    parser.add_argument("--checkpoint-dir", type=Path, help="default: LEPTON_CHECKPOINT_DIR")
    parser.add_argument("--checkpoint-interval-s", type=float, default=5.0)
    parser.add_argument("--model-out", type=Path, help="write the trained model here")
    return parser.parse_args()


def load_table(name: str, *, seed: int) -> Table:
    """Return a bundled table, standardised on its training rows, one row in five held out."""
    raw = load_diabetes() if name == "diabetes" else CLASS_TABLES[name]()
    train_x, test_x, train_y, test_y = train_test_split(
        raw.data,
        raw.target.astype(np.float64),
        test_size=0.2,
        random_state=seed,
        stratify=None if name == "diabetes" else raw.target,
    )
    mean, spread = train_x.mean(axis=0), train_x.std(axis=0)
    return Table(
        train_x=(train_x - mean) / spread,
        train_y=train_y,
        test_x=(test_x - mean) / spread,
        test_y=test_y,
    )


def make_model(kind: str, *, n_inputs: int, n_outputs: int) -> nn.Module:
    """Return an untrained model."""
    if kind == "linear":
        return nn.Linear(n_inputs, n_outputs)
    return nn.Sequential(
        nn.Linear(n_inputs, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, n_outputs)
    )


def fit(
    args: argparse.Namespace, model: nn.Module, table: Table, folder: Path | None
) -> tuple[int, int]:
    """Train to the end or until TERM; return the steps it began and ended with."""
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=0.1 if args.model == "linear" else 0.003,
        weight_decay=0.0 if args.model == "linear" else 0.01,
    )
    x, y = torch.as_tensor(table.train_x, dtype=torch.float32), torch.as_tensor(table.train_y)
    # Least squares on standardised targets: the same optimum, reached in fewer steps.
    target = standardised(y) if args.model == "linear" else y.long()
    settings = {"model": args.model, "table": args.table, "seed": args.seed}
    first = step = resume(folder, model, optimizer, settings)
    stop, saved_at_s = StopFlag(), time.monotonic()
    if first:
        print(f"resumed from step {first}", flush=True)
    model.train()
    while step < args.steps and not stop.is_set:
        optimizer.zero_grad()
        loss = loss_of(args.model, model(x), target)
        loss.backward()
        optimizer.step()
        step += 1
        if step % 50 == 0:
            print(f"step {step}/{args.steps} loss {loss.item():.4f}", flush=True)
        is_last = step == args.steps or stop.is_set
        if folder and (is_last or time.monotonic() - saved_at_s >= args.checkpoint_interval_s):
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save_checkpoint(folder, step, state | {"settings": settings})
            saved_at_s = time.monotonic()
    model.eval()
    return first, step


def resume(
    folder: Path | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: dict[str, object],
) -> int:
    """Take up the newest checkpoint, if there is one, and return its step."""
    found = load_latest_checkpoint(folder) if folder else None
    if found is None:
        return 0
    step, state = found
    if state["settings"] != settings:
        raise SystemExit(f"the checkpoint is of {state['settings']}, not {settings}")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return step


def loss_of(kind: str, output: Tensor, target: Tensor) -> Tensor:
    """Return squared error for the linear model, cross entropy for the classifier."""
    if kind == "linear":
        return functional.mse_loss(output.squeeze(1), target)
    return functional.cross_entropy(output, target)


def standardised(y: Tensor) -> Tensor:
    """Return the targets with mean 0 and spread 1."""
    return ((y - y.mean()) / y.std(correction=0)).float()


@torch.inference_mode()
def compare(kind: str, model: nn.Module, table: Table) -> tuple[float, float]:
    """Return the model's score on the held-out rows, and its baseline's."""
    output = model(torch.as_tensor(table.test_x, dtype=torch.float32)).numpy()
    if kind == "linear":
        mean, spread = table.train_y.mean(), table.train_y.std()
        predicted = output[:, 0] * spread + mean
        return r_squared(predicted, table.test_y), r_squared(least_squares(table), table.test_y)
    labels = output.argmax(axis=1)
    logistic = LogisticRegression(max_iter=1000).fit(table.train_x, table.train_y)
    return float((labels == table.test_y).mean()), float(
        logistic.score(table.test_x, table.test_y)
    )


def least_squares(table: Table) -> Floats:
    """Return the exact solution's predictions for the held-out rows."""
    train = np.column_stack([table.train_x, np.ones(len(table.train_x))])
    weights, *_ = np.linalg.lstsq(train, table.train_y)
    predicted: Floats = np.column_stack([table.test_x, np.ones(len(table.test_x))]) @ weights
    return predicted


def r_squared(predicted: Floats, actual: Floats) -> float:
    """Return the fraction of the variance that the predictions explain."""
    residual = np.square(actual - predicted).sum()
    return float(1 - residual / np.square(actual - actual.mean()).sum())


if __name__ == "__main__":
    sys.exit(main())
