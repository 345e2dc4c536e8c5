"""Artifacts in the hands of others: Ray, Triton, and runtimes that read engines from ONNX files."""
