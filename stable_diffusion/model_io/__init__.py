"""Checkpoint files -> modules: where they come from, what their names mean, strict loading."""
