"""Grids: the same request with one to three settings varied, as A1111's X/Y/Z plot and prompt matrix have them."""
