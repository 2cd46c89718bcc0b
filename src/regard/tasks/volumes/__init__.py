"""Medical volumes and slices: files, grids, windows, regions, losses, metrics, pages."""
