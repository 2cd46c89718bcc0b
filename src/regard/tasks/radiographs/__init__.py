"""Radiographs as tasks need them: listed with their patients, decoded from PNG, JPEG or DICOM, augmented, generated."""
