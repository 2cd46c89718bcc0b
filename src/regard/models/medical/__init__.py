"""Networks for medical images and volumes: segmenters and classifiers, one file per architecture."""
