"""Exports trained weights to bundles of ONNX graphs, and bundles to engines."""

from editar_rt.telemetry import refuse_telemetry

refuse_telemetry()  # before any module here, or a library of theirs, imports onnxruntime
