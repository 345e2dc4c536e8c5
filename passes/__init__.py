"""ONNX in, ONNX out: the graph passes of trt-rewriter.

Everything here works with the standard library, numpy, onnx and onnx-graphsurgeon; TensorFlow, TensorRT, a GPU
and ONNX Runtime sessions are injected from `rewriter` where a pass needs their answers.
"""
