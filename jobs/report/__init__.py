"""The report of a dataset: one HTML page for people."""
