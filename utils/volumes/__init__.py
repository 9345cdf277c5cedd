"""Voxel arrays and their geometry: axes, spacing, crops, label values, intensities."""
