"""docs/traces.md names every format, and its example runs."""

import re
from pathlib import Path

from simulator.traces import formats

TEXT = (Path(__file__).parent.parent / "docs" / "traces.md").read_text()


def test_every_format_is_described():
    assert [f.name for f in formats() if f"\n| `{f.name}` | " not in TEXT] == []


def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)[1], names)
    assert names["n_jobs"] == 100
    assert (tmp_path / "part.jsonl.gz").stat().st_size > 1000
