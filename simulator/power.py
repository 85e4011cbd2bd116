"""How much power a GPU draws, by a model of two numbers: what it idles at, and its limit.

The limit is the board power that its maker states; a GPU that holds a task is taken to draw
all of it, which training comes close to. Idle power is about an eighth of it (NVIDIA's A100
and H100 boards idle at 50 to 70 W of 400 and 700). What CPUs, memory and fans of a node draw is
`node_w` of its pool. It compares clusters; it is no substitute for a meter.
"""

from dataclasses import dataclass

IDLE_PART = 0.125

_BOARD_W = {
    "A10": 150.0,
    "A10G": 300.0,
    "A100": 400.0,
    "A30": 165.0,
    "A40": 300.0,
    "B200": 1000.0,
    "G2": 150.0,  # the anonymous types of the openb trace: A10 and V100 boards
    "G3": 400.0,
    "H100": 700.0,
    "H200": 700.0,
    "K80": 300.0,
    "L4": 72.0,
    "L40S": 350.0,
    "MI250X": 560.0,
    "MI300X": 750.0,
    "P100": 300.0,
    "P4": 75.0,
    "QUADRO": 260.0,
    "RTX": 260.0,
    "T4": 70.0,
    "V100": 300.0,
    "V100M16": 300.0,
    "V100M32": 300.0,
}
"""Board power by type as their makers state it (data sheets; SXM where there are several)."""


@dataclass(frozen=True, slots=True)
class GpuPower:
    """What one GPU draws."""

    idle_w: float
    busy_w: float


def gpu_power(gpu_type: str) -> GpuPower | None:
    """Return what a GPU of that type draws; None: unknown."""
    board_w = _BOARD_W.get(gpu_type.upper().split("-")[0].split("_")[0])
    return None if board_w is None else GpuPower(board_w * IDLE_PART, board_w)
