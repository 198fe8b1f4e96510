"""Picture handling without any model: reading, fitting, masks, sheets. This file imports nothing."""

FITS = ("crop", "pad", "stretch")  # how a picture is brought to another shape
MASKED_CONTENTS = ("original", "noise", "fill")  # what a masked part starts from
