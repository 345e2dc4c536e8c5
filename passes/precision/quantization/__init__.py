"""INT8 and FP8: where Q/DQ pairs go (`placement`, `sources`), numbers in 8 bits (`quantize`), trained grids."""
