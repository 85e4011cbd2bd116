"""Handwritten digits, 8 by 8 pixels, and the network that reads them.

The data is scikit-learn's bundled copy of the UCI set (1,797 images), or a file that
`pipeline/preprocess.py` wrote. Pixels are 0 to 1 inside; raw ones are 0 to 16.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

SIDE = 8
N_PIXELS = SIDE * SIDE
N_CLASSES = 10
MAX_PIXEL = 16.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Digits:
    """Images (n, 1, 8, 8) and labels (n), to train on and held out."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def bundled_digits() -> Digits:
    """Return scikit-learn's digits, one in five of each class held out."""
    from sklearn.datasets import load_digits  # a second to import, and not always needed

    raw = load_digits()
    return split_digits(raw.data, raw.target)


def split_digits(pixels: NDArray[np.float64], labels: NDArray[np.int64]) -> Digits:
    """Hold one in five of each class out, the same ones every time."""
    from sklearn.model_selection import train_test_split

    train_x, test_x, train_y, test_y = train_test_split(
        pixels, labels, test_size=0.2, random_state=0, stratify=labels
    )
    return Digits(
        train_images=to_images(train_x),
        train_labels=torch.as_tensor(train_y, dtype=torch.int64),
        test_images=to_images(test_x),
        test_labels=torch.as_tensor(test_y, dtype=torch.int64),
    )


def save_digits(path: Path, digits: Digits) -> None:
    """Write a data set to an .npz file."""
    arrays = {name: getattr(digits, name).numpy() for name in Digits.__slots__}
    np.savez_compressed(path, **arrays)


def read_digits(path: Path) -> Digits:
    """Read a data set that `save_digits` wrote."""
    with np.load(path) as arrays:
        return Digits(**{name: torch.as_tensor(arrays[name]) for name in Digits.__slots__})


def to_images(pixels: NDArray[np.float64]) -> Tensor:
    """Turn rows of 64 raw pixels into what the network reads."""
    return torch.as_tensor(pixels / MAX_PIXEL, dtype=torch.float32).reshape(-1, 1, SIDE, SIDE)


def digits_cnn() -> nn.Module:
    """Return an untrained network: two convolutions and two layers, 148,000 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (SIDE // 2) ** 2, 128),
        nn.ReLU(),
        nn.Linear(128, N_CLASSES),
    )


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the fraction of images that the model reads right."""
    return float((model(images).argmax(dim=1) == labels).float().mean())
