"""Picture handling without any model: reading, fitting, masks, sheets. This file imports nothing."""

TILINGS = {"off": (), "x": (2,), "y": (1,), "both": (1, 2)}  # and the axes of (B, H, W, C) that go around
FITS = ("crop", "pad", "stretch")  # how a picture is brought to another shape
MASKED_CONTENTS = ("original", "noise", "fill")  # what a masked part starts from
