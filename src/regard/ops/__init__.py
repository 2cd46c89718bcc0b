"""Pure functions on tensors, without parameters: the plain reference beside the fast path."""
