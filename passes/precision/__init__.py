"""Lower precision, by rewriting the copy of a segment that TensorRT builds; the native graph never changes.

    recipe.py   what is asked for            ranges.py   what calibration found
    lower.py    the steps in their order     cast.py qdq.py fake_quant.py weight_only.py   the steps
    emulate.py  the lowered arithmetic in float32 operators, for a machine with no GPU
"""
