"""Step 3: turn clean rows into tensors, one digit in five held out for `evaluate.py`."""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from digits import save_digits, split_digits


def main() -> None:
    """Read `clean.csv`, write `digits.npz`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the pipeline keeps its files")
    folder = parser.parse_args().folder
    table = np.loadtxt(folder / "clean.csv", delimiter=",")
    digits = split_digits(table[:, :-1], table[:, -1].astype(np.int64))
    save_digits(folder / "digits.npz", digits)
    print(f"{len(digits.train_labels)} to train on, {len(digits.test_labels)} held out")


if __name__ == "__main__":
    main()
