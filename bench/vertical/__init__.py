"""Measurements of vertical methods."""
