"""Segmentation of volumes in OME-Zarr, block by block."""
