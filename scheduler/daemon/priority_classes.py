"""Named priorities: what a configuration's classes make of a job.

A class is looked up when a job is submitted or updated, and what it says is journalled with
the job: a class that changes later changes no job, and a replay needs no configuration.
"""

from collections.abc import Mapping
from dataclasses import replace

from scheduler.config import PriorityClassConfig
from scheduler.core.errors import InvalidInput
from scheduler.core.model import JobSpec

Classes = Mapping[str, PriorityClassConfig]


def class_named(name: str, classes: Classes) -> PriorityClassConfig:
    """Return the class of that name; InvalidInput names the ones there are."""
    if name not in classes:
        known = f"must be one of {', '.join(classes)}" if classes else "there are none here"
        raise InvalidInput("priority_class", f"{known}, not {name!r}")
    return classes[name]


def with_class(spec: JobSpec, classes: Classes) -> JobSpec:
    """Return the spec with what the class it names says."""
    if not spec.priority_class:
        return spec
    found = class_named(spec.priority_class, classes)
    if spec.priority not in {0, found.value}:
        raise InvalidInput("priority_class", "must not be given together with priority")
    return replace(
        spec,
        priority=found.value,
        may_preempt=spec.may_preempt and found.may_preempt,
        preemptible=spec.preemptible if found.preemptible is None else found.preemptible,
    )
