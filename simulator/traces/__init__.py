"""Traces: jobs of the past, or made up, as the simulator reads them."""

from simulator.traces.format import Assumptions, Format
from simulator.traces.own import write_trace
from simulator.traces.registry import formats, read_trace, recognise
from simulator.traces.source import TraceError

__all__ = [
    "Assumptions",
    "Format",
    "TraceError",
    "formats",
    "read_trace",
    "recognise",
    "write_trace",
]
