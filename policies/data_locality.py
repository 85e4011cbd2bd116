"""Data locality: which compute node reads which part of which block of data.

Blocks lie on storage nodes; a compute node handles so many bytes per second; a read crosses
links that carry so many. Transfers are fluid: what matters is the bytes each node handles and
each link carries, not their order. Yields the best split, and scores of nodes for a placement.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import sparse  # type: ignore[import-untyped]

from policies.linear_program import Array, LinearProgram, Rows, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class DataCluster:
    """Blocks of data, compute nodes, and the links between the two."""

    block_bytes: Array
    compute_bytes_per_s: Array
    link_bytes_per_s: Array
    crosses: sparse.csr_array
    """Links by (block, node) pairs, block by block: how often the read crosses the link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlan:
    """The part of each block that each compute node reads, and how long it takes."""

    fractions: Array
    """Blocks by nodes; rows sum to 1."""
    finish_s: Array
    """Per node, from its own bytes: on it and on each link."""
    largest_s: float
    """When everything is read and handled, with the links shared."""
    status: Status


def through_switches(
    block_switch: Rows, compute_switch: Rows, n_switches: int
) -> sparse.csr_array:
    """Return what reads cross if each node hangs on one switch and all switches are connected.

    A read crosses the switches of both ends, and a switch once if they are the same.
    """
    n_computes = len(compute_switch)
    start = np.repeat(block_switch, n_computes)
    end = np.tile(compute_switch, len(block_switch))
    reads = np.arange(len(start))
    away = start != end
    where = (np.concatenate([start, end[away]]), np.concatenate([reads, reads[away]]))
    return sparse.csr_array((np.ones(len(where[0])), where), shape=(n_switches, len(reads)))


def best_reads(
    cluster: DataCluster,
    *,
    minimise: Literal["largest", "total"] = "largest",
    within_s: float = np.inf,
    time_limit_s: float | None = None,
) -> ReadPlan:
    """Split the reads for the least largest, or the least total, finish time of the nodes.

    With `within_s` everything must be done by then; INFEASIBLE then means it cannot be. The
    plan is `blind_reads` if there is none.
    """
    n_blocks, n_computes = len(cluster.block_bytes), len(cluster.compute_bytes_per_s)
    handled = sparse.kron(cluster.block_bytes[None, :], sparse.eye_array(n_computes))
    carried = cluster.crosses @ sparse.diags_array(np.repeat(cluster.block_bytes, n_computes))
    lp = LinearProgram(read=n_blocks * n_computes, finish=n_computes, last=1)
    lp.bound("last", upper=within_s)
    every_block = sparse.kron(sparse.eye_array(n_blocks), np.ones((1, n_computes)))
    lp.equal({"read": every_block}, 1.0)
    rate = -np.diag(cluster.compute_bytes_per_s)
    lp.at_most({"read": handled, "finish": rate}, 0.0)
    lp.at_most({"finish": np.eye(n_computes), "last": -np.ones((n_computes, 1))}, 0.0)
    lp.at_most({"read": carried, "last": -cluster.link_bytes_per_s[:, None]}, 0.0)
    for node in range(n_computes if minimise == "total" else 0):
        own = sparse.csr_array(
            carried * (np.arange(n_blocks * n_computes) % n_computes == node)
        )
        pace = np.zeros((len(cluster.link_bytes_per_s), n_computes))
        pace[:, node] = -cluster.link_bytes_per_s
        lp.at_most({"read": own, "finish": pace}, 0.0)
    solution = lp.minimize(
        "last" if minimise == "largest" else "finish", time_limit_s=time_limit_s
    )
    if solution.status is not Status.OPTIMAL:
        return read_plan(cluster, blind_reads(cluster), status=solution.status)
    fractions = np.clip(solution["read"].reshape(n_blocks, n_computes), 0.0, 1.0)
    return read_plan(cluster, fractions / fractions.sum(axis=1, keepdims=True))


def blind_reads(cluster: DataCluster) -> Array:
    """Return the fractions of a placement that knows the nodes' speeds, not where data lies."""
    rate = cluster.compute_bytes_per_s
    return np.tile(rate / rate.sum(), (len(cluster.block_bytes), 1))


def read_plan(
    cluster: DataCluster, fractions: Array, *, status: Status = Status.OPTIMAL
) -> ReadPlan:
    """Tell how long these fractions take."""
    read_bytes = cluster.block_bytes[:, None] * fractions
    n_links = len(cluster.link_bytes_per_s)
    links_s = (cluster.crosses @ read_bytes.ravel()) / cluster.link_bytes_per_s
    own = cluster.crosses.multiply(read_bytes.ravel()[None, :]).toarray()
    by_node_s = own.reshape(n_links, *fractions.shape).sum(axis=1)
    by_node_s /= cluster.link_bytes_per_s[:, None]
    compute_s = read_bytes.sum(axis=0) / cluster.compute_bytes_per_s
    finish_s = np.maximum(compute_s, by_node_s.max(axis=0, initial=0.0))
    return ReadPlan(
        fractions=fractions,
        finish_s=finish_s,
        largest_s=max(float(finish_s.max()), float(links_s.max(initial=0.0))),
        status=status,
    )


def seconds_alone(cluster: DataCluster) -> Array:
    """Return per compute node how long it takes to read and handle all blocks by itself.

    A placement score: the smaller, the nearer is the node to the data, for its speed.
    """
    n_computes = len(cluster.compute_bytes_per_s)
    all_bytes = np.repeat(cluster.block_bytes, n_computes)
    carried = cluster.crosses.multiply(all_bytes[None, :]).toarray()
    carried = carried.reshape(len(cluster.link_bytes_per_s), -1, n_computes).sum(axis=1)
    links_s = (carried / cluster.link_bytes_per_s[:, None]).max(axis=0, initial=0.0)
    seconds: Array = np.maximum(
        cluster.block_bytes.sum() / cluster.compute_bytes_per_s, links_s
    )
    return seconds
