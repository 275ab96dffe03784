"""From trained weights to what a device runs: ONNX graphs in a bundle."""

from editar_rt.telemetry import refuse_telemetry

refuse_telemetry()  # before any module here, or a library of theirs, imports onnxruntime
