"""Networks on series: forecasts, classes, events and decisions, each around any causal sequence mixer."""
