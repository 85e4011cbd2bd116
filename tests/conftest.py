"""Shared by all tests: which marked tests run, and how much Hypothesis does."""

import os
import shutil
import signal

import pytest
from hypothesis import HealthCheck, settings

# These machines are shared and noisy: a slow example is not a failure.
settings.register_profile(
    "lepton", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("lepton")

# A shell that starts us in the background has us, and all we start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing = {}
    if not config.getoption("--slow"):
        missing["slow"] = "takes long: run with --slow"
    if shutil.which("nvidia-smi") is None:
        missing["gpu"] = "needs an NVIDIA GPU"
    if not os.environ.get("KUBECONFIG"):
        missing["kubernetes"] = "needs a cluster: set KUBECONFIG"
    for item in items:
        for mark, reason in missing.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))
