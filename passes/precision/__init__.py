"""Lower precision, by rewriting the copy of a segment that TensorRT builds; the native graph never changes.

`recipe` says what is asked for, `ranges` what calibration found; `lower` has the steps in their order (`fake_quant`,
`qdq`, `weight_only`, `cast`); `emulate` writes the lowered arithmetic in float32 operators, for a machine with no GPU.
"""
