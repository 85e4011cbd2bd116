import asyncio
import io
import json
import signal

import aiohttp
import numpy as np
import pytest
from examples_testing import EXAMPLES, ending, finish, result, run, start, wait_for_line
from sklearn.datasets import load_digits

from scheduler.job_file import load_job_files

DIGITS = load_digits()
IMAGES = DIGITS.data.tolist()
LABELS = DIGITS.target.tolist()
FOR_SIMULATIONS = {EXAMPLES / "cluster.yaml", EXAMPLES / "services.yaml"}
"""No job files: tests of `lepton simulate` run them."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Where collect, clean, preprocess and a short training have been."""
    folder = tmp_path_factory.mktemp("pipeline")
    collectors = [
        start("pipeline/collect.py", folder, "--of", 2, LEPTON_ARRAY_INDEX=index)
        for index in range(2)
    ]
    with ending(*collectors):
        for collector in collectors:
            finish(collector)
    run("pipeline/clean.py", folder)
    run("pipeline/preprocess.py", folder)
    model = ("--data", folder / "digits.npz", "--model-out", folder / "model.pt")
    trained = result(run("train_cnn.py", *model, "--epochs", 6))
    assert trained["accuracy"] >= 0.9
    return folder


def test_the_pipeline_is_a_chain_and_every_job_file_is_valid():
    chain = load_job_files(EXAMPLES / "pipeline" / "pipeline.yaml")
    steps = ["collect", "clean", "preprocess", "train", "evaluate", "deploy"]
    assert [job.spec.name for job in chain] == steps
    assert [[after.on for after in job.after_names] for job in chain] == [
        [],
        *([step] for step in steps[:-1]),
    ]
    for path in set(EXAMPLES.glob("*.yaml")) - FOR_SIMULATIONS:
        (job,) = load_job_files(path)
        (role,) = job.spec.roles
        assert (EXAMPLES / role.launch.command[1]).exists()
        assert role.launch.working_dir == str(EXAMPLES)


def test_cleaning_drops_exactly_what_was_spoilt(workspace):
    counts = json.loads((workspace / "cleaning.json").read_text())
    assert counts["kept"] == len(IMAGES)
    assert sum(counts["dropped"].values()) == 60
    assert len(counts["dropped"]) == 5

    kept = np.loadtxt(workspace / "clean.csv", delimiter=",")
    expected = np.column_stack([DIGITS.data, DIGITS.target])
    assert sorted(kept.tolist()) == sorted(expected.tolist())


def test_evaluation_reports_and_fails_below_its_threshold(workspace):
    passed = start("pipeline/evaluate.py", workspace, "--threshold", 0.9)
    failed = start("pipeline/evaluate.py", workspace, "--threshold", 1.01)
    with ending(passed, failed):
        finish(passed)
        finish(failed, exit_code=1)
    report = json.loads((workspace / "report.json").read_text())
    assert report["n_held_out"] == np.sum(report["confusion"]) == 360
    assert report["accuracy"] == pytest.approx(np.trace(report["confusion"]) / 360, abs=1e-4)


@pytest.fixture
def service(workspace, tmp_path):
    """Serve a copy of the model, and give where."""
    (tmp_path / "model.pt").write_bytes((workspace / "model.pt").read_bytes())
    process = start("serve.py", "--model", tmp_path / "model.pt", "--port", 0)
    with ending(process):
        yield wait_for_line(process, "serving").split()[-1]
        process.send_signal(signal.SIGTERM)
        assert "answered everything" in finish(process)


async def test_the_service_reads_is_taught_and_remembers(service, workspace, tmp_path):
    async with aiohttp.ClientSession(service) as http:
        answers = await asyncio.gather(*(infer(http, instance=image) for image in IMAGES[:64]))
        right = [answer["label"] for answer in answers] == np.array(LABELS[:64])
        assert right.mean() >= 0.9
        batch = await infer(http, instances=IMAGES[:1000])
        assert batch["model_version"] == 1
        before = np.mean([p["label"] for p in batch["predictions"]] == np.array(LABELS[:1000]))

        taught = await post(http, "/train", instances=IMAGES[:1000], labels=LABELS[:1000])
        assert taught["model_version"] == 2
        assert taught["accuracy_after"] >= taught["accuracy_before"]
        batch = await infer(http, instances=IMAGES[:1000])
        assert batch["model_version"] == 2
        assert (
            np.mean([p["label"] for p in batch["predictions"]] == np.array(LABELS[:1000]))
            >= before
        )

        metrics = await (await http.get("/metrics")).text()
        assert 'digits_requests_total{path="/infer",status="200"} 66.0' in metrics
        assert "digits_model_version 2.0" in metrics
        assert 'digits_request_duration_seconds_count{path="/train"} 1.0' in metrics
        health = await http.get("/healthz")
        assert await health.json() == {"status": "ok", "model_version": 2}

    again = start("serve.py", "--model", tmp_path / "model.pt", "--port", 0)
    with ending(again):
        assert "serving version 2" in wait_for_line(again, "serving")


BLANK = [0] * 64


async def test_the_service_refuses_what_it_cannot_read(service):
    cases = {
        "/infer": [
            (b"{", "must be JSON"),
            (b"[" * 100_000, "must be JSON"),
            (b"\xff\xfe", "must be JSON"),
            ([], "must be a JSON object"),
            ({}, "either instance or instances"),
            ({"instance": BLANK, "instances": [BLANK]}, "either instance or instances"),
            ({"instance": BLANK, "model": 2}, "unknown field 'model'"),
            ({"instances": []}, "1 to 1024 images"),
            ({"instances": [BLANK] * 1025}, "1 to 1024 images"),
            ({"instance": BLANK[1:]}, "image 0 must be a list of 64 numbers"),
            ({"instances": [BLANK, 7]}, "image 1 must be a list of 64 numbers"),
            ({"instance": [17, *BLANK[1:]]}, "17 is not from 0 to 16"),
            ({"instance": [float("nan"), *BLANK[1:]]}, "NaN is not from"),
            ({"instance": [True, *BLANK[1:]]}, "true is not from"),
        ],
        "/train": [
            ({"instances": [BLANK]}, "one for each image"),
            ({"instances": [BLANK], "labels": [10]}, "10 is not a label"),
            ({"instances": [BLANK], "labels": [1], "epochs": 0}, "epochs must be"),
        ],
    }
    async with aiohttp.ClientSession(service) as http:
        for path, refused in cases.items():
            for body, message in refused:
                data = body if isinstance(body, bytes) else json.dumps(body)
                response = await http.post(path, data=data)
                assert response.status == 400, (body, await response.text())
                assert message in (await response.json())["error"]
        assert (await http.post("/infer", data=io.BytesIO(b" " * (5 << 20)))).status == 413
        assert (await http.get("/nothing")).status == 404
        assert (await infer(http, instance=BLANK))["model_version"] == 1


async def infer(http, **body):
    return await post(http, "/infer", **body)


async def post(http, path, **body):
    async with http.post(path, json=body) as response:
        assert response.status == 200, await response.text()
        return await response.json()
