"""Regions of a picture: segments, boxes, objects and the subject, and which phrase names which."""
