"""The samplers, one family per file; `stable_diffusion.sampler` finds them by name."""
