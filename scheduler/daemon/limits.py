"""How much a single request may ask for, and the rules that texts and numbers must keep.

Every check raises `InvalidInput` with a path relative to what it was given; `within` puts the
outer part of the path in front while the error travels up, so a request that is fine pays
nothing for it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from scheduler.config import LimitsConfig
from scheduler.core.errors import InvalidInput

SMALLEST_AMOUNT = 1e-12
YEAR_S = 366 * 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # a daemon has one: hashed fast
class Limits:
    """Bounds of one request, or of all of them. Generous for people, finite for the daemon."""

    max_message_bytes: int = 4 * 1024 * 1024
    max_roles_per_job: int = 32
    max_tasks_per_job: int = 10_000  # by the largest count an update may ask for
    max_array_size: int = 10_000
    max_tasks_per_array: int = 100_000
    max_dependencies: int = 1_000
    max_page_size: int = 1_000
    max_page_bytes: int = 16 * 1024 * 1024
    max_live_jobs: int = 1_000_000
    max_concurrent_rpcs: int = 4_096
    max_watches: int = 1_000
    max_followed_logs: int = 256
    max_labels: int = 64
    max_env: int = 512
    max_env_bytes: int = 256 * 1024
    max_args: int = 1_024
    max_args_bytes: int = 512 * 1024
    max_gpu_types: int = 32
    max_scaling_points: int = 64
    max_shared_throughputs: int = 1_024
    max_tolerations: int = 64
    max_users_per_queue: int = 1_000
    max_name_length: int = 63  # of a role, a queue, a node label: what Kubernetes takes
    max_job_name_length: int = 128
    max_key_length: int = 253
    max_value_length: int = 256
    max_path_length: int = 4_096
    max_text_length: int = 4_096  # of a filter, an order, a page token
    max_watched_jobs: int = 1_000
    max_request_id_length: int = 128
    max_cpu_milli: int = 10_000_000
    max_memory_mib: int = 1 << 30
    max_input_mib: int = 1 << 40
    max_gpus_per_task: int = 1_024
    max_priority: int = 1_000_000_000  # and its negative
    max_retries: int = 10_000
    max_duration_s: float = 10 * YEAR_S
    max_epoch_s: float = 253_402_300_800.0  # the end of the year 9999
    max_tail_lines: int = 1_000_000
    requests_per_s: float = 500.0  # of one caller, see `rate_limit`; 0: any number
    request_burst: int = 2_000

    @classmethod
    def from_config(cls, config: LimitsConfig) -> Self:
        """Return the limits, with those that are configured."""
        return cls(**config.model_dump())


NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
NAME_RULE = (
    "must be letters, digits, '.', '_' and '-', and begin and end with a letter or digit"
)
KEY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9])?")
KEY_RULE = "keys must be letters, digits, '.', '_', '-' and '/', beginning and ending plainly"
ENV_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
ENV_KEY_RULE = "keys must be letters, digits and '_', and not begin with a digit"
REQUEST_ID = re.compile(r"[!-~]*")
JOB_ID = re.compile(r"[0-9]{1,18}(?:_[0-9]{1,9})?")
JOB_ID_RULE = "must be a job like 17, or an array's element like 17_3"
USER = re.compile(r"[^\s\x00-\x1f\x7f]+")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def within(outer: str, error: InvalidInput) -> InvalidInput:
    """Return the error with its path seen from one level further out."""
    joint = "" if not error.field or error.field.startswith("[") else "."
    return InvalidInput(f"{outer}{joint}{error.field}", error.rule)


def check_name(field: str, value: str, max_length: int) -> str:
    """Return a name that is safe in paths, labels and filters."""
    if not value:
        raise InvalidInput(field, "must not be empty")
    if len(value) > max_length:
        raise InvalidInput(field, f"must be at most {max_length} characters")
    if NAME.fullmatch(value) is None:
        raise InvalidInput(field, NAME_RULE)
    return value


def check_job_id(field: str, value: str) -> str:
    """Return what may be the id of a job or an array."""
    if not value:
        raise InvalidInput(field, "must not be empty")
    if JOB_ID.fullmatch(value) is None:
        raise InvalidInput(field, JOB_ID_RULE)
    return value


def check_text(field: str, value: str, max_length: int) -> str:
    """Return one line of text without control characters."""
    if len(value) > max_length:
        raise InvalidInput(field, f"must be at most {max_length} characters")
    if CONTROL.search(value) is not None:
        raise InvalidInput(field, "must be one line without control characters")
    return value


def check_user(field: str, value: str, limits: Limits) -> str:
    """Return the name of a user: one word."""
    if not value or len(value) > limits.max_key_length or USER.fullmatch(value) is None:
        raise InvalidInput(field, "must be one word")
    return value


def check_int(field: str, value: int, lowest: int, highest: int) -> int:
    """Return a whole number within its bounds."""
    if not lowest <= value <= highest:
        raise InvalidInput(field, f"must be from {lowest} to {highest}")
    return value


def check_seconds(field: str, value: float, highest: float) -> float:
    """Return a time from 0 on; not a number and infinity are refused too."""
    if not 0.0 <= value <= highest:
        raise InvalidInput(field, f"must be from 0 to {highest:g} seconds")
    return value


def check_amount(field: str, value: float, least: float = SMALLEST_AMOUNT) -> float:
    """Return a number of reasonable size; programs that share by it need it to be one."""
    if not least <= value <= 1 / SMALLEST_AMOUNT:
        raise InvalidInput(field, f"must be from {least:g} to {1 / SMALLEST_AMOUNT:g}")
    return value


def check_count(field: str, n: int, highest: int) -> None:
    """Refuse a list or map with too many entries."""
    if n > highest:
        raise InvalidInput(field, f"must have at most {highest} entries")


def check_labels(
    field: str, labels: Mapping[str, str], limits: Limits
) -> tuple[tuple[str, str], ...]:
    """Return labels sorted by key."""
    if not labels:
        return ()
    check_count(field, len(labels), limits.max_labels)
    for key, value in labels.items():
        if len(key) > limits.max_key_length or KEY.fullmatch(key) is None:
            raise InvalidInput(field, KEY_RULE)
        check_text(f"{field}[{key}]", value, limits.max_value_length)
    return tuple(sorted(labels.items()))


def check_users(field: str, users: Iterable[str], limits: Limits) -> tuple[str, ...]:
    """Return a list of users, each once."""
    names = tuple(users)
    check_count(field, len(names), limits.max_users_per_queue)
    for index, name in enumerate(names):
        check_user(f"{field}[{index}]", name, limits)
    if len(set(names)) != len(names):
        raise InvalidInput(field, "must name each user once")
    return names
