"""Engines and native islands on a GPU: one device, one stream."""
