"""The race of training-free attention inside a model of transformers: quality, time and memory at several budgets."""
