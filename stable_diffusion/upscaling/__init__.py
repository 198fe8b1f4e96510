"""Enlarging pictures: upscalers by name, and what each does to a picture. This file imports nothing."""
