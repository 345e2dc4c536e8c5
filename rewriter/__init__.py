"""Drop-in successor of TF-TRT on ONNX and today's TensorRT."""
