"""Comparing ways of computing the same outputs: figures, pictures, pages, and where a difference starts."""
