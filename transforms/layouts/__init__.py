"""Layouts: prompts whose phrases have boxes."""
