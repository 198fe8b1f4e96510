"""What is laid over a loaded checkpoint: LoRA and its kin, textual-inversion embeddings. It stays as it is."""
