"""Arrays of voxels and where they lie: axes, spacing, crops, label values, intensities."""
