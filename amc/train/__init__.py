"""Training with gradients: of a network from scratch, and of a pruned one with the original as its teacher."""
