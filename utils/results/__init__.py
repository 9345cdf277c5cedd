"""Quality of masks: metrics, tables and pictures; needs no network."""
