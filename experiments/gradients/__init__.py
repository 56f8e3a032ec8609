"""What deep networks meet: vanishing and exploding gradients, and the remedies."""
