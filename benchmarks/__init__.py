"""Measurements, each a script of its own; README.md says how to run them."""
