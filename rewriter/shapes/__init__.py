"""Sample inputs, the shapes seen with them, and the optimization profiles made of these."""
