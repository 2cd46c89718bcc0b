"""Networks on sequences of tokens: language models, and sequence-to-sequence models."""
