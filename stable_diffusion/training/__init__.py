"""How the models are made: data, losses and loops."""
