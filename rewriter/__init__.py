"""The successor of TF-TRT: TensorFlow models, as ONNX, with TensorRT engines spliced in."""
