"""Datasets as the folders that other programs load, a module per format."""
