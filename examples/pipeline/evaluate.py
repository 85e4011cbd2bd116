"""Step 5: judge the trained model on the digits it has never seen; fail if it is not good."""

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from checkpoints import load_model
from digits import N_CLASSES, digits_cnn, read_digits


def main() -> int:
    """Read `digits.npz` and `model.pt`, write `report.json`; 1 if below the threshold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the pipeline keeps its files")
    parser.add_argument("--threshold", type=float, default=0.98)
    args = parser.parse_args()

    model = digits_cnn()
    model.load_state_dict(load_model(args.folder / "model.pt")["model"])
    digits = read_digits(args.folder / "digits.npz")
    with torch.inference_mode():
        answers = model(digits.test_images).argmax(dim=1)
    confusion = torch.zeros(N_CLASSES, N_CLASSES, dtype=torch.int64)
    for truth, answer in zip(digits.test_labels, answers, strict=True):
        confusion[truth, answer] += 1
    accuracy = float(confusion.trace() / confusion.sum())
    report = {
        "accuracy": round(accuracy, 4),
        "threshold": args.threshold,
        "n_held_out": len(answers),
        "confusion": confusion.tolist(),  # rows: what it is; columns: what the model said
    }
    (args.folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"accuracy {accuracy:.4f} on {len(answers)} held-out digits")
    return int(accuracy < args.threshold)


if __name__ == "__main__":
    sys.exit(main())
