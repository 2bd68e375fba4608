"""Packaging for Dataflow: the image that launches builds and works on them, and the flex template that starts one."""
