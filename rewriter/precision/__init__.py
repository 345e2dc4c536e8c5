"""Lower precision in a conversion: what a user asks for, the ranges it needs, and what becomes of every segment.

`options` and `plan` hold what was asked; `calibration` (with `probe`, `counts`, `histogram`, `thresholds`) finds
ranges; `work` is a calibration as a value, for other machines to do;
`lowering` turns segments into what TensorRT gets, `emulation` into what ONNX Runtime can compute honestly;
`workarounds` knows TensorRT's faults, `arithmetic` and `notes` tell the report what came of it.
"""
