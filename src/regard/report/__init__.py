"""Self-contained HTML pages that open offline, and PNG plots: no network, no torch, every string escaped."""
