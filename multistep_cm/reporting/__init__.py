"""What people look at: picture grids, metric files, progress lines."""
