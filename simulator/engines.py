"""Where simulations run: in processes of their own, or on a Ray, Dask or Spark cluster.

All of them through joblib, so that a case does not know where it runs.
"""

import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from scheduler.core.errors import InvalidInput

REACHED_WITHIN_S = 5.0
"""How long a cluster has to answer at its address."""


class Engine(StrEnum):
    """Where cases run."""

    PROCESSES = "processes"
    RAY = "ray"
    DASK = "dask"
    SPARK = "spark"


class EngineMissing(Exception):
    """What an engine needs is not installed, or its cluster cannot be reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Where to run, and on how many workers. An address names a cluster that is there."""

    engine: Engine = Engine.PROCESSES
    address: str = ""
    workers: int = 0  # 0: one per core, or what the cluster has


HERE = Where()

_PACKAGES = {
    Engine.RAY: "pip install ray",
    Engine.DASK: "pip install distributed",
    Engine.SPARK: "pip install joblibspark pyspark",
}


@contextmanager
def backend(where: Where) -> Iterator[None]:
    """Have joblib run there. Raises EngineMissing for what is not installed or not there."""
    if where.address:
        _reach(where)
    try:
        with _chosen(where):
            yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {
            "ray",
            "dask",
            "distributed",
            "joblibspark",
            "pyspark",
        }:
            raise
        need = _PACKAGES[where.engine]
        raise EngineMissing(f"engine {where.engine} needs {error.name}: {need}") from error


def _reach(where: Where) -> None:
    """Make sure that somebody answers there: the engines themselves try for minutes."""
    if where.engine is Engine.PROCESSES:
        rule = "is that of a cluster: say with --engine whether of ray, dask or spark"
        raise InvalidInput("--address", rule)
    host, _, port = where.address.rpartition("//")[2].rpartition(":")
    if not host or not port.isdigit():
        return  # not HOST:PORT: what only the engine understands, as `auto` or `yarn`
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHED_WITHIN_S).close()
    except (OSError, OverflowError) as error:
        raise EngineMissing(f"no {where.engine} cluster at {where.address}: {error}") from error


def _chosen(where: Where) -> AbstractContextManager[Any]:
    match where.engine:
        case Engine.PROCESSES:
            return _loky()
        case Engine.RAY:
            return _ray(where)
        case Engine.DASK:
            return _dask(where)
        case Engine.SPARK:
            return _spark(where)


@contextmanager
def _loky() -> Iterator[None]:
    from joblib import parallel_config  # type: ignore[import-untyped]

    with parallel_config(backend="loky", inner_max_num_threads=1):
        yield


@contextmanager
def _ray(where: Where) -> Iterator[None]:
    import ray  # type: ignore[import-not-found, unused-ignore]
    from joblib import parallel_config
    from ray.util.joblib import (  # type: ignore[import-not-found, unused-ignore]
        register_ray,
    )

    try:
        ray.init(address=where.address or None, log_to_driver=False, ignore_reinit_error=True)
    except ConnectionError as error:
        raise EngineMissing(f"no Ray cluster at {where.address}: {error}") from error
    register_ray()
    try:
        with parallel_config(backend="ray"):
            yield
    finally:
        ray.shutdown()


@contextmanager
def _dask(where: Where) -> Iterator[None]:
    from distributed import Client  # type: ignore[import-not-found, unused-ignore]
    from joblib import parallel_config

    try:
        client = Client(where.address) if where.address else Client(
            n_workers=where.workers or None, threads_per_worker=1, dashboard_address=None
        )  # fmt: skip
    except (OSError, TimeoutError) as error:
        raise EngineMissing(f"no Dask scheduler at {where.address}: {error}") from error
    try:
        with client, parallel_config(backend="dask"):
            yield
    finally:
        client.close()


@contextmanager
def _spark(where: Where) -> Iterator[None]:
    from joblib import parallel_config
    from joblibspark import (  # type: ignore[import-not-found, unused-ignore]
        register_spark,
    )
    from pyspark.sql import SparkSession  # type: ignore[import-not-found, unused-ignore]

    builder = SparkSession.builder.appName("lepton")
    builder = builder.config("spark.ui.showConsoleProgress", False)
    if where.address:
        has_scheme = "://" in where.address
        builder = builder.master(where.address if has_scheme else f"spark://{where.address}")
    try:
        session = builder.getOrCreate()
    except Exception as error:  # of pyspark or py4j: without Java, say
        said = " ".join(str(error).split()[:40])
        raise EngineMissing(f"Spark does not start: {said}") from error
    session.sparkContext.setLogLevel("ERROR")
    session.sparkContext.parallelize([0], 1).count()  # until the first worker is there
    register_spark()
    try:
        with parallel_config(backend="spark"):
            yield
    finally:
        session.stop()
