"""What a trained model attends to, and how it breaks."""
