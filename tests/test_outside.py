"""Policies and scores that other packages bring: installed, listed, used, and blamed."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import invalidate_caches
from pathlib import Path
from textwrap import dedent

import pytest
from cluster_testing import Cluster
from daemon_testing import LEPTON, prepare_daemon, shell_spec, wait_until

from policies import outside
from policies.registry import POLICIES, policy_named, score_named
from scheduler.client import ClientError
from scheduler.config import parse_config
from scheduler.core.errors import InvalidInput, PolicyError
from scheduler.yaml_source import InvalidSource

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "policy_plugin"

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return what puts a distribution on the path, as an installer would."""
    n_installed = 0

    def put(code: str, *, dist: str = "acme", **entries: str) -> None:
        nonlocal n_installed
        n_installed += 1
        folder = tmp_path / f"{dist}-{n_installed}"
        info = folder / f"{dist}-1.5.dist-info"
        info.mkdir(parents=True)
        module = f"{dist}_{n_installed}_{tmp_path.name.replace('-', '_')}"
        (folder / f"{module}.py").write_text(dedent(code))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.5\n")
        lines = [
            f"[lepton.{group}]\n" + "\n".join(f"{n} = {module}:{n}" for n in names.split())
            for group, names in entries.items()
        ]
        (info / "entry_points.txt").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(str(folder))
        invalidate_caches()

    return put


BACKWARDS = """
    def backwards(snapshot, rows):
        '''Serve the latest first.'''
        return rows[snapshot.jobs.sequence[rows].argsort()[::-1]]
"""


def test_an_ordering_is_a_policy(install: Install) -> None:
    install(BACKWARDS, policies="backwards")
    cluster = Cluster("backwards")
    cluster.add_nodes(1, gpus=2)
    for name in ("one", "two", "three"):
        cluster.submit(name, gpus=1)
    assert cluster.cycle().started == ["three", "two"]
    cluster.validate()


def test_a_policy_keeps_what_it_says_but_for_its_name(install: Install) -> None:
    install(
        """
        from dataclasses import replace
        from policies.registry import policy_named
        mine = replace(policy_named("priority"), patience_s=7.0)
        """,
        policies="mine",
    )
    policy = policy_named("mine")
    assert (policy.name, policy.patience_s) == ("mine", 7.0)
    cluster = Cluster(policy)
    cluster.add_nodes(1, gpus=1)
    cluster.submit("low", gpus=1)
    cluster.settle()
    cluster.submit("high", gpus=1, priority=1)
    assert list(cluster.cycle().evicted) == ["low"]


@pytest.mark.parametrize("chooses", [False, True])
def test_a_score_places(install: Install, chooses: bool) -> None:
    method = """
            def choose_devices(self, nodes, row, shape):
                free = (nodes.device_free[row] == 1000).nonzero()[0]
                return tuple(free[-shape.gpus:].tolist())
    """
    code = """
        class Last:
            def __call__(self, nodes, shape, rows):
                return rows
    """
    install(code + (method if chooses else "") + "\n        last = Last()", scores="last")
    cluster = Cluster(policy_named("fifo", score="last"))
    cluster.add_nodes(3, gpus=4)
    cluster.submit("job", gpus=1)
    decided = cluster.cycle()
    assert decided.nodes == {"job": ["node-2"]}
    assert decided.devices == {"job": [(3,) if chooses else (0,)]}


BROKEN = {
    "a module that does not import": (
        "import nothing_like_this",
        "cannot be loaded: ModuleNot",
    ),
    "a name that is not there": ("", "cannot be loaded: AttributeError"),
    "no policy": ("wrong = 7", "must be a Policy or an ordering function, not int"),
    "a class": ("class wrong: pass", "must be a Policy or an ordering function, not type"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_a_policy_is_refused_with_its_origin(
    install: Install, case: str
) -> None:
    code, rule = BROKEN[case]
    install(code, policies="wrong", scores="wrong")
    with pytest.raises(InvalidInput) as caught:
        policy_named("wrong")
    assert caught.value.field == "policy"
    assert "'wrong' of acme 1.5" in caught.value.rule
    assert rule in caught.value.rule
    with pytest.raises(InvalidInput, match=r"score: 'wrong' of acme 1\.5"):
        score_named("wrong")
    with pytest.raises(InvalidSource, match=r"x:1: policy: 'wrong' of acme 1\.5"):
        parse_config("policy: wrong\n", "x", folder=Path())


MISTAKES = {
    "rows[:1]": "must return the rows it was given, each once",
    "rows.repeat(2)": "must return the rows it was given, each once",
    "rows * 0": "must return the rows it was given, each once",
    "1 / 0": "failed: ZeroDivisionError",
}


@pytest.mark.parametrize("answer", MISTAKES)
def test_an_order_that_is_none_is_blamed_on_its_distribution(
    install: Install, answer: str
) -> None:
    install(f"def wrong(snapshot, rows):\n    return {answer}", policies="wrong")
    cluster = Cluster("wrong")
    cluster.add_nodes(1, gpus=2)
    for name in ("one", "two"):
        cluster.submit(name, gpus=1)
    with pytest.raises(PolicyError) as caught:
        cluster.decide()
    assert str(caught.value).startswith(f"the ordering of acme 1.5 {MISTAKES[answer]}")


def test_scores_and_choices_of_devices_are_blamed_too(install: Install) -> None:
    install(
        """
        class Score:
            def __init__(self, value, device):
                self.value, self.device = value, device
            def __call__(self, nodes, shape, rows):
                return rows * self.value
            def choose_devices(self, nodes, row, shape):
                return (self.device,)
        unclear, twice = Score(float("nan"), 0), Score(1.0, 9)
        """,
        scores="unclear twice",
    )
    rules = {"unclear": "must return a number per row", "twice": "must return free devices"}
    for name, rule in rules.items():
        cluster = Cluster(policy_named("fifo", score=name))
        cluster.add_nodes(1, gpus=2)
        cluster.submit("job", gpus=1)
        with pytest.raises(PolicyError, match=rf"of acme 1\.5 {rule}"):
            cluster.decide()


def test_names_are_told_apart(install: Install) -> None:
    install(BACKWARDS.replace("backwards", "fifo"), dist="third", policies="fifo")
    assert policy_named("fifo") == POLICIES["fifo"]
    install(BACKWARDS, policies="backwards")
    install(BACKWARDS, policies="backwards")  # the same one, on the path once more
    assert policy_named("backwards").name == "backwards"
    install(BACKWARDS, dist="other", policies="backwards")
    with pytest.raises(InvalidInput, match=r"offered by acme 1\.5 and other 1\.5: remove one"):
        policy_named("backwards")
    with pytest.raises(InvalidInput, match=r"must be one of fifo, .*backwards.*, not 'best'"):
        policy_named("best")
    described = outside.described(outside.outsiders(outside.POLICY_GROUP)["fifo"])
    assert described == ("Serve the latest first", False)


def lepton(*words: str, site: Path) -> str:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{site}"}
    done = subprocess.run(
        [*LEPTON, *words], env=env, capture_output=True, text=True, check=False, timeout=60
    )
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the example and install it into a folder, offline, as users would with pip."""
    home = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(EXAMPLE, home / "source")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"),
            *("--no-build-isolation", "--disable-pip-version-check"),
            *("--target", str(home / "site"), str(source)),
        ],
        check=True,
        timeout=120,
        env={**os.environ, "PIP_NO_INPUT": "1"},
    )
    return home / "site"


def test_the_example_is_listed_with_its_origin(site: Path) -> None:
    listed = json.loads(lepton("policies", "-o", "json", site=site))["policies"]
    by_name = {entry["name"]: entry for entry in listed}
    assert by_name["fifo"]["origin"] == "lepton"
    assert by_name["smallest_first_strict"]["origin"] == "lepton-example-policies 1.0"
    assert by_name["smallest_first"]["aim"].startswith("Serve whoever asks for the fewest")
    lines = [line.split() for line in lepton("policies", "--scores", site=site).splitlines()]
    assert ["cheapest", "lepton-example-policies", "1.0"] in lines


async def test_a_daemon_serves_by_the_example(site: Path, tmp_path: Path) -> None:
    nodes = [
        {"name": "dear", "cpus": 4, "price_usd_per_h": 9.0},
        {"name": "cheap", "cpus": 4, "price_usd_per_h": 1.0},
    ]
    daemon = prepare_daemon(tmp_path, nodes=nodes, policy="smallest_first", score="cheapest")
    try:
        daemon.start(env={"PYTHONPATH": f"{ROOT}{os.pathsep}{site}"})
        async with daemon.client() as client:
            answer = await client.submit(shell_spec("true"))
            job = await client.wait(answer.job_id)
            assert [task.node for task in job.tasks] == ["cheap"]
            assert (await client.server_info()).policy == "smallest_first"
    finally:
        daemon.end_everything()


async def test_a_daemon_whose_policy_fails_goes_on_serving_and_says_whom_to_ask(
    install: Install, tmp_path: Path
) -> None:
    install("def wrong(snapshot, rows):\n    return rows[1:]", policies="wrong")
    daemon = prepare_daemon(tmp_path / "home", policy="wrong")
    blame = "the ordering of acme 1.5 must return the rows it was given, each once"
    try:
        daemon.start(env={"PYTHONPATH": f"{ROOT}{os.pathsep}{sys.path[0]}"})
        async with daemon.client() as client:
            answer = await client.submit(shell_spec("true"))
            with pytest.raises(ClientError, match=blame):
                await client.explain(answer.job_id)
            wait_until(lambda: f"nothing can be decided: {blame}" in daemon.log())
            assert daemon.is_running()
    finally:
        daemon.end_everything()
