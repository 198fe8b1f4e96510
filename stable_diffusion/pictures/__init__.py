"""Pictures without any model: reading, fitting, masks, sheets. The names of what can be chosen cost no import."""

FITS = ("crop", "pad", "stretch")  # how a picture comes to another shape
MASKED_CONTENTS = ("original", "noise", "fill")  # what a masked part begins from
