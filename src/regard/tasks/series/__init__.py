"""Tasks on series: forecasting, classification, events and control, with readers of the formats that they come in."""
