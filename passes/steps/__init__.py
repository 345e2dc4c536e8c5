"""What `Canonicalize`, `FoldConstants` and `Legalize` are made of: each file is one part of one of these passes."""
