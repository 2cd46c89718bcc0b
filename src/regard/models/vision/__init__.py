"""Networks for image classification, and backbones of detectors."""
