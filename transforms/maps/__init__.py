"""Condition maps of pictures: pure functions, picture in, map out, and the steps that run them."""
