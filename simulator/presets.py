"""Workloads fitted to the published statistics of five clusters.

Source of the figures: `cluster_summary.csv` of AcmeTrace (Hu et al., NSDI '24), which
summarises Philly (Jeon et al., ATC '19), Helios (Hu et al., SC '21), PAI (Weng et al.,
NSDI '22), Seren and Kalos over their GPU jobs. Fitted to it, by least squares on the closed
forms of `synthetic`: mean and median run time, longest run time, mean and median GPUs, shares
of the endings and, but for PAI, the GPU time of each ending. `reproduction.statistics` has
published against generated.

Assumed, because no summary says it: the shape of the distribution of sizes (Philly's is that of
its public jobs; all are tilted by a power of the size to the published mean), medians of failed
jobs below and of cancelled ones above those of completed ones, the profiles (Philly's is
measured from its public jobs, in Pacific time; the others' are office hours), and queues. Of
PAI no endings are published: all its jobs succeed.
"""

from collections.abc import Mapping

from scheduler.core.errors import InvalidInput
from scheduler.core.model import JobPhase
from simulator.synthetic import Ending, Workload

_COMPLETED, _CANCELLED, _FAILED = JobPhase.SUCCEEDED, JobPhase.CANCELLED, JobPhase.FAILED

_OFFICE_DAY = (0.7, 0.55, 0.45, 0.4, 0.35, 0.35, 0.4, 0.5, 0.8, 1.2, 1.45, 1.4,
               1.0, 1.2, 1.45, 1.5, 1.5, 1.45, 1.1, 1.15, 1.3, 1.3, 1.15, 0.95)  # fmt: skip
_OFFICE_WEEK = (1.1, 1.15, 1.15, 1.15, 1.1, 0.7, 0.65)

PHILLY = Workload(
    name="philly",
    n_gpus=2490,
    jobs_per_day=824.0,  # 112,956 in 137 days
    sizes=((1, 0.85968), (2, 0.029), (4, 0.04244), (8, 0.05304), (16, 0.00982), (32, 0.00483),
           (64, 0.00076), (128, 0.00043)),
    endings=(
        Ending(phase=_COMPLETED, share=0.604, median_s=849.9, growth=0.045),
        Ending(phase=_CANCELLED, share=0.09, median_s=1841.7, growth=0.886),
        Ending(phase=_FAILED, share=0.305, median_s=580.7, growth=0.777),
    ),
    spread=2.503,
    max_run_s=4_240_676.0,
    hourly=(1.19, 0.99, 1.15, 1.11, 0.75, 1.2, 1.6, 1.87, 1.15, 1.06, 1.1, 0.85,
            0.76, 0.75, 0.62, 0.66, 0.88, 0.69, 0.86, 0.77, 0.95, 0.95, 1.06, 1.04),
    weekly=(0.88, 1.12, 1.15, 1.21, 1.32, 0.63, 0.58),
    queues=(("vc-a", 0.50), ("vc-b", 0.20), ("vc-c", 0.12), ("vc-d", 0.09), ("vc-e", 0.09)),
)  # fmt: skip

HELIOS = Workload(
    name="helios",
    n_gpus=6220,
    jobs_per_day=8636.0,  # 1,580,464 in 183 days
    sizes=((1, 0.66877), (2, 0.07033), (4, 0.08422), (8, 0.13073), (16, 0.02841),
           (32, 0.01134), (64, 0.00423), (128, 0.00131), (256, 0.00049), (512, 0.00011),
           (1024, 0.00005), (2048, 0.00001)),
    endings=(
        Ending(phase=_COMPLETED, share=0.624, median_s=158.6, growth=0.337),
        Ending(phase=_CANCELLED, share=0.221, median_s=267.9, growth=0.464),
        Ending(phase=_FAILED, share=0.155, median_s=103.4, growth=0.358),
    ),
    spread=2.654,
    max_run_s=4_320_009.0,
    hourly=_OFFICE_DAY,
    weekly=_OFFICE_WEEK,
    queues=(("vc-a", 0.33), ("vc-b", 0.12), ("vc-c", 0.10), ("vc-d", 0.10), ("vc-e", 0.35)),
)  # fmt: skip

PAI = Workload(
    name="pai",
    n_gpus=6742,
    jobs_per_day=16_727.0,  # 1,037,085 in 62 days
    sizes=((0.1, 0.07739), (0.25, 0.27146), (0.5, 0.29996), (1, 0.30641), (2, 0.02751),
           (4, 0.01054), (8, 0.00673)),
    endings=(Ending(phase=_COMPLETED, share=1.0, median_s=481.5),),
    spread=2.221,
    max_run_s=626_371.0,
    hourly=_OFFICE_DAY,
    weekly=_OFFICE_WEEK,
    queues=(("ads", 0.4), ("search", 0.3), ("research", 0.3)),
)  # fmt: skip

SEREN = Workload(
    name="seren",
    n_gpus=2288,
    jobs_per_day=3608.0,  # 663,813 in 184 days
    sizes=((1, 0.71136), (2, 0.05045), (4, 0.0501), (8, 0.12934), (16, 0.01976), (32, 0.01962),
           (64, 0.00974), (128, 0.0058), (256, 0.00288), (512, 0.00076), (1024, 0.00019)),
    endings=(
        Ending(phase=_COMPLETED, share=0.497, median_s=126.5, growth=0.207),
        Ending(phase=_CANCELLED, share=0.075, median_s=237.6, growth=0.866),
        Ending(phase=_FAILED, share=0.429, median_s=74.0, growth=0.239),
    ),
    spread=2.096,
    max_run_s=1_209_604.0,
    hourly=_OFFICE_DAY,
    weekly=_OFFICE_WEEK,
    queues=(("pretrain", 0.1), ("evaluation", 0.6), ("research", 0.3)),
)  # fmt: skip

KALOS = Workload(
    name="kalos",
    n_gpus=2416,
    jobs_per_day=108.2,  # 19,907 in 184 days
    sizes=((1, 0.77659), (2, 0.02023), (4, 0.02055), (8, 0.0522), (16, 0.01061), (32, 0.03232),
           (64, 0.02189), (128, 0.02224), (256, 0.0226), (512, 0.01377), (1024, 0.007)),
    endings=(
        Ending(phase=_COMPLETED, share=0.541, median_s=113.7, growth=0.413),
        Ending(phase=_CANCELLED, share=0.062, median_s=212.3, growth=0.942),
        Ending(phase=_FAILED, share=0.397, median_s=66.4, growth=0.323),
    ),
    spread=1.744,
    max_run_s=625_740.0,
    hourly=_OFFICE_DAY,
    weekly=_OFFICE_WEEK,
    queues=(("pretrain", 0.1), ("evaluation", 0.7), ("research", 0.2)),
)  # fmt: skip

PRESETS: Mapping[str, Workload] = {
    preset.name: preset for preset in (PHILLY, HELIOS, PAI, SEREN, KALOS)
}


def preset(name: str) -> Workload:
    """Return the preset of that name."""
    if name not in PRESETS:
        raise InvalidInput("preset", f"{name!r} is none of {', '.join(PRESETS)}")
    return PRESETS[name]
