"""TF-TRT's interface for TensorFlow 1."""

from rewriter.legacy.converter import TrtGraphConverter, create_inference_graph

__all__ = ["TrtGraphConverter", "create_inference_graph"]
