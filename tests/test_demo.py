import subprocess
import sys

import pytest
from examples_testing import EXAMPLES

DEADLINE_S = 180


@pytest.mark.alone
@pytest.mark.timeout(DEADLINE_S + 60)
def test_the_demo_happens_and_leaves_nothing_behind(tmp_path):
    command = [sys.executable, EXAMPLES / "demo.py", "--folder", tmp_path / "demo"]
    try:
        demo = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
    finally:
        subprocess.run([*command, "--stop"], check=True)
    assert demo.returncode == 0, demo.stdout
    assert "✗" not in demo.stdout
    assert "All of it happened" in demo.stdout
