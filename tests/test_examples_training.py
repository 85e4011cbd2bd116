import signal

import pytest
import torch
from examples_testing import (
    EXAMPLES,
    ending,
    finish,
    result,
    run,
    start,
    start_gang,
    wait_for_line,
)

EXIT_STOPPED = 143


@pytest.fixture
def checkpoints(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import checkpoints

    return checkpoints


@pytest.fixture
def digits(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import digits

    return digits


def weights(path):
    return torch.cat([tensor.flatten() for tensor in torch.load(path)["model"].values()])


def stop_after(process, word):
    with ending(process):
        wait_for_line(process, word)
        process.send_signal(signal.SIGTERM)
        return finish(process, exit_code=EXIT_STOPPED)


def test_a_gang_stopped_by_term_resumes_alone_and_reads_98_percent(tmp_path):
    gang = start_gang(2, LEPTON_CHECKPOINT_DIR=tmp_path)
    with ending(*gang):
        wait_for_line(gang[0], "step 100/")
        gang[1].send_signal(signal.SIGTERM)  # one of them is enough: they agree
        assert "stopped by TERM at step" in finish(gang[0], exit_code=EXIT_STOPPED)
        finish(gang[1], exit_code=EXIT_STOPPED)

    trained = result(run("train_cnn.py", LEPTON_CHECKPOINT_DIR=tmp_path))
    assert trained["resumed_from_step"] > 100
    assert trained["world_size"] == 1
    assert trained["steps"] == 660
    assert trained["accuracy"] >= 0.98


def test_what_is_learned_does_not_depend_on_the_gang_or_on_stops(tmp_path, digits):
    digits.save_digits(tmp_path / "digits.npz", digits.bundled_digits())
    data = ("--data", tmp_path / "digits.npz")
    settings = (*data, "--epochs", 1, "--batch", 15, "--model-out")  # shared as 8 and 7
    alone = start("train_cnn.py", *settings, tmp_path / "alone.pt")
    stopped = start("train_cnn.py", *settings, tmp_path / "-", LEPTON_CHECKPOINT_DIR=tmp_path)
    with ending(alone, stopped):
        stop_after(stopped, "step 50/")
        finish(alone)
    again = run(
        "train_cnn.py", *settings, tmp_path / "resumed.pt", LEPTON_CHECKPOINT_DIR=tmp_path
    )
    assert result(again)["resumed_from_step"] >= 50

    gang = start_gang(2, *settings, tmp_path / "gang.pt")
    with ending(*gang):
        for process in gang:
            finish(process)

    alone = weights(tmp_path / "alone.pt")
    assert torch.equal(weights(tmp_path / "resumed.pt"), alone)
    # Sums in another order round differently.
    assert torch.allclose(weights(tmp_path / "gang.pt"), alone, atol=1e-3)

    other = start("train_cnn.py", *data, "--epochs", 2, "--checkpoint-dir", tmp_path)
    assert "the checkpoint is of" in finish(other, exit_code=1)


def test_a_gang_that_loses_a_member_keeps_its_work(tmp_path):
    gang = start_gang(2, LEPTON_CHECKPOINT_DIR=tmp_path)
    with ending(*gang):
        wait_for_line(gang[0], "step 50/")
        gang[1].kill()
        assert "lost its gang" in finish(gang[0], exit_code=1)
    assert [path.name for path in tmp_path.glob("step-*.pt")]


def test_a_damaged_checkpoint_is_passed_over(tmp_path, checkpoints):
    checkpoints.save_checkpoint(tmp_path, 5, {"note": "older"})
    newest = checkpoints.save_checkpoint(tmp_path, 10, {"note": "newer"})
    assert checkpoints.load_latest_checkpoint(tmp_path) == (10, {"note": "newer"})

    newest.write_bytes(newest.read_bytes()[:-1])
    assert checkpoints.load_latest_checkpoint(tmp_path) == (5, {"note": "older"})


def test_only_the_newest_checkpoints_are_kept_and_nothing_temporary(tmp_path, checkpoints):
    for step in range(5):
        checkpoints.save_checkpoint(tmp_path, step, {})
    assert sorted(path.name[:13] for path in tmp_path.iterdir()) == [
        "step-00000003",
        "step-00000004",
    ]


def test_small_models_match_their_baselines(tmp_path):
    linear = start("train_mlp.py", "--model", "linear")
    mlp = start("train_mlp.py", "--model-out", tmp_path / "mlp.pt", LEPTON_ARRAY_INDEX=2)
    with ending(linear, mlp):
        line = result(finish(linear))
        assert (line["measure"], line["table"]) == ("r_squared", "diabetes")
        assert line["score"] == pytest.approx(line["baseline"], abs=0.005)
        line = result(finish(mlp))
        assert (line["measure"], line["seed"]) == ("accuracy", 2)
        assert line["score"] >= line["baseline"] - 0.04
    assert (tmp_path / "mlp.pt").exists()


def test_a_small_model_resumes_too(tmp_path):
    slow = ("--steps", 1_000_000, "--checkpoint-dir", tmp_path)
    stop_after(start("train_mlp.py", *slow), "step 50/")
    assert "stopped by TERM" in stop_after(start("train_mlp.py", *slow), "resumed from step")
