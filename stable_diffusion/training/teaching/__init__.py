"""Teaching a finished model a subject or a style from a few pictures: LoRA, DreamBooth, textual inversion."""
