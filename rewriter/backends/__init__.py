"""TensorRT in its two packages, behind one protocol."""
