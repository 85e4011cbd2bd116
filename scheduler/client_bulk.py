"""Many submits in few messages: batches to send, and send again, as one stream."""

import secrets
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass

from scheduler.core.model import JobSpec
from scheduler.daemon.codec_views import spec_message
from scheduler.wire import cluster_pb2

BATCH_SIZE = 20_000
"""Submits per stream: what is sent again when the daemon goes away."""
MESSAGE_BYTES = 32 * 1024
"""Submits travel together up to this size: half of the least that a daemon accepts."""

Spec = JobSpec | cluster_pb2.JobSpec


@dataclass(frozen=True, slots=True)
class Numbered:
    """A spec, and the request id that keeps a repeat from making a second job."""

    spec: Spec
    request_id: str


def as_message(spec: Spec) -> cluster_pb2.JobSpec:
    """Return a spec as the wire has it."""
    return spec_message(spec) if isinstance(spec, JobSpec) else spec


async def batches(specs: Iterable[Spec] | AsyncIterable[Spec]) -> AsyncIterator[list[Numbered]]:
    """Yield the specs, each with an id of its own, in lists of `BATCH_SIZE`."""
    stem = secrets.token_hex(8)
    batch: list[Numbered] = []
    number = 0
    async for spec in _each(specs):
        batch.append(Numbered(spec, f"{stem}-{number}"))
        number += 1
        if len(batch) == BATCH_SIZE:
            yield batch
            batch = []
    if batch:
        yield batch


async def _each(specs: Iterable[Spec] | AsyncIterable[Spec]) -> AsyncIterator[Spec]:
    if isinstance(specs, AsyncIterable):
        async for spec in specs:
            yield spec
    else:
        for spec in specs:
            yield spec


def messages(batch: Iterable[Numbered]) -> Iterator[cluster_pb2.SubmitJobRequest]:
    """Yield the submits of a batch, several to a message, made as they are asked for."""
    head: cluster_pb2.SubmitJobRequest | None = None
    n_bytes = 0
    for numbered in batch:
        spec = as_message(numbered.spec)
        n_bytes += spec.ByteSize()
        if head is None or n_bytes > MESSAGE_BYTES:
            if head is not None:
                yield head
            head = cluster_pb2.SubmitJobRequest(spec=spec, request_id=numbered.request_id)
            n_bytes = spec.ByteSize()
        else:
            head.more.add(spec=spec, request_id=numbered.request_id)
    if head is not None:
        yield head
