"""Cutting a subject out of its picture and laying it on another background."""
