"""Image files as tasks need them: found in folders, decoded whatever their kind, augmented, and shown."""
