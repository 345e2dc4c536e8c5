"""Turns what users have (SavedModel, Keras, functions, ONNX) into a `SourceModel`."""
