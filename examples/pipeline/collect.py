"""Step 1: collect raw digits into one CSV file, as one element of an array of collectors.

Reads LEPTON_ARRAY_INDEX for its share of the images. The world is not tidy, so a few rows of
each file are spoilt on purpose, in ways that `clean.py` must find.
"""

import argparse
import csv
import os
import random
from pathlib import Path

from sklearn.datasets import load_digits

SPOILT_PER_FILE = 30


def main() -> None:
    """Write this collector's file, whole or not at all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the pipeline keeps its files")
    parser.add_argument("--of", type=int, default=1, help="how many collectors there are")
    args = parser.parse_args()
    folder = args.folder / "raw"
    index = int(os.environ.get("LEPTON_ARRAY_INDEX") or 0)

    raw = load_digits()
    rows = [
        [*(f"{pixel:g}" for pixel in pixels), str(label)]
        for pixels, label in zip(
            raw.data[index :: args.of], raw.target[index :: args.of], strict=True
        )
    ]
    dice = random.Random(index)
    spoilt = [spoil(list(dice.choice(rows)), dice) for _ in range(SPOILT_PER_FILE)]
    table = rows + spoilt
    dice.shuffle(table)

    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".part-{index}.tmp"
    with temporary.open("w", newline="") as file:
        csv.writer(file).writerows(table)
    temporary.replace(folder / f"part-{index}.csv")
    print(f"collected {len(rows)} digits, and {len(spoilt)} rows that are spoilt")


def spoil(row: list[str], dice: random.Random) -> list[str]:
    """Damage a row in one of the ways that data gets damaged."""
    place = dice.randrange(64)
    match dice.choice(("missing", "range", "text", "label", "cut", "duplicate")):
        case "missing":
            row[place] = ""
        case "range":
            row[place] = "255"
        case "text":
            row[place] = "n/a"
        case "label":
            row[-1] = "seven"
        case "cut":
            del row[place + 1 :]
        case _:
            pass  # an unchanged copy of a row that is there already
    return row


if __name__ == "__main__":
    main()
