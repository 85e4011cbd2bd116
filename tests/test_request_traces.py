"""Traces of requests to models become loads; malformed ones are refused by line."""

import numpy as np
import pytest

from simulator.traces import TraceError
from simulator.traces.requests import TokenCounts, read_load, read_requests

AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:18:04.0781490,110,27
"""
MOONCAKE = """\
{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}
{"timestamp": 3000, "input_length": 7322, "output_length": 490, "hash_ids": [0, 14]}
"""
SERVEGEN = """\
category,model,client,timestamp,rate,cv
language,m-large,0,0,2.0,3.0
language,m-large,1,0,6.0,1.0
language,m-large,0,1200,1.0,1.0
language,m-small,7,0,50.0,1.0
"""


def test_azure_requests(tmp_path):
    (tmp_path / "a.csv").write_text(AZURE)
    requests = read_requests(tmp_path / "a.csv")
    assert np.diff(requests.at_s).round(3).tolist() == [0.052, 60.046]
    assert requests.prompt_tokens.tolist() == [4808, 3180, 110]
    assert requests.output_tokens.tolist() == [10, 8, 27]
    assert read_load(tmp_path / "a.csv", every_s=60).n_requests == pytest.approx(3)


def test_mooncake_requests(tmp_path):
    (tmp_path / "m.jsonl").write_text(MOONCAKE)
    requests = read_requests(tmp_path / "m.jsonl")
    assert requests.at_s.tolist() == [0.0, 3.0]
    assert requests.prompt_tokens.tolist() == [6758, 7322]


def test_servegen_clients_add_up_to_a_load(tmp_path):
    (tmp_path / "s.csv").write_text(SERVEGEN)
    load = read_load(tmp_path / "s.csv", models=["m-large"], tokens=TokenCounts(prompt=10.0))
    assert load.at_s.tolist() == [0, 600, 1200, 1800]
    assert load.rate_per_s.tolist() == [8.0, 0.0, 1.0]
    assert load.arrival_scv.tolist() == [(2 * 9 + 6 * 1) / 8, 1.0, 1.0]
    assert set(load.prompt_tokens.tolist()) == {10.0}
    with pytest.raises(TraceError, match="there are no clients of m-none"):
        read_load(tmp_path / "s.csv", models=["m-none"])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (MOONCAKE.replace("6758", "9" * 400), "t:1: "),
        (MOONCAKE.replace("500", "3000000000"), "t:1: output_length: must be from 0 to"),
        (SERVEGEN.replace("2.0,3.0", "2.0,1e300"), "t:2: cv: 1e+300 is too large"),
        (SERVEGEN.replace("1200", "1000"), "t:4: timestamp: 1000 is no multiple of 600 s"),
        (SERVEGEN.replace("1200", "1e12"), "t:4: timestamp: 1e+12 s is more than 1e+11 s"),
        (SERVEGEN.replace("0,1200", "0,0"), "t:4: timestamp: the client has a row of this"),
        (AZURE + "soon,1,2\n", "t:5: TIMESTAMP: 'soon' is not a moment"),
        (AZURE + "2023-11-16 18:19:00,x,2\n", "t:5: ContextTokens: 'x' is not a number"),
        (AZURE + "2023-11-16 18:19:00,1\n", "t:5: 2 fields where there should be 3"),
        (MOONCAKE + '{"timestamp": 1}\n', "t:3: Object missing required field `input_length`"),
        ("a,b\n", "not Azure's or Mooncake's: it begins with 'a,b'"),
        (AZURE.splitlines()[0], "there are no requests"),
    ],
)
def test_malformed_requests_are_refused_by_place(tmp_path, text, what):
    (tmp_path / "t").write_text(text)
    with pytest.raises(TraceError) as raised:
        read_load(tmp_path / "t")
    assert what in str(raised.value)
