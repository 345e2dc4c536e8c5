"""What ONNX has no word for stays in TensorFlow: a frozen graph is cut into islands and what can be exported."""
