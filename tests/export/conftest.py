"""The exporter's tests trace each model once."""

from tests.traces import share_traces

share_traces()
