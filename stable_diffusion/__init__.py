"""Stable Diffusion for MLX."""
