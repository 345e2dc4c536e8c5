"""FP16 and BF16 step by step; `passes.precision.cast` puts the steps together.

`facts` of a model, `islands` that stay float32 (by `taint`, `magnitude` and `constants`), and the `rewrite`.
"""
