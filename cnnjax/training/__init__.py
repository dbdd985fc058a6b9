"""How a network learns: losses, metrics, optimizers, arrays-only state, pure steps and saving."""
