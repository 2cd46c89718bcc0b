"""Parts with parameters or memory, but no contract of their own."""
