"""Segmentation of image files."""
