"""Captions: writing, parsing, phrases, plurals, and words for class names."""
