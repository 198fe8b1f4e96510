"""The samplers, one family to a file; `stable_diffusion.sampler` is where they are found by name."""
