"""Step 2: keep the rows that are sound, once each, and count the others by what ails them."""

import argparse
import csv
import json
from collections import Counter
from pathlib import Path

N_PIXELS = 64
MAX_PIXEL = 16


def main() -> None:
    """Read `raw/*.csv`, write `clean.csv` and `cleaning.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the pipeline keeps its files")
    folder = parser.parse_args().folder

    dropped: Counter[str] = Counter()
    kept: dict[tuple[str, ...], None] = {}  # in order, once each
    for path in sorted((folder / "raw").glob("part-*.csv")):
        with path.open(newline="") as file:
            for row in map(tuple, csv.reader(file)):
                if ailment := what_ails(row):
                    dropped[ailment] += 1
                elif row in kept:
                    dropped["duplicate"] += 1
                else:
                    kept[row] = None
    if not kept:
        raise SystemExit(f"no sound row in {folder / 'raw'}")

    with (folder / "clean.csv").open("w", newline="") as file:
        csv.writer(file).writerows(kept)
    counts = {"kept": len(kept), "dropped": dict(sorted(dropped.items()))}
    (folder / "cleaning.json").write_text(json.dumps(counts, indent=2) + "\n")
    print(json.dumps(counts))


def what_ails(row: tuple[str, ...]) -> str:
    """Return what is wrong with a row; empty if it is sound."""
    if len(row) != N_PIXELS + 1:
        return "wrong length"
    *pixels, label = row
    if not all(pixel.isdigit() for pixel in pixels):
        return "missing or not a number"
    if max(map(int, pixels)) > MAX_PIXEL:
        return "out of range"
    if not (len(label) == 1 and label.isdigit()):
        return "no such label"
    return ""


if __name__ == "__main__":
    main()
