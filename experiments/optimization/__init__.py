"""How networks learn: optimizers, learning rates, losses."""
