"""What is added to a loaded checkpoint without changing it: LoRA and its relatives, textual inversion."""
