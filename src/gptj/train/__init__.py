"""Training: the state, the step, the optimizer, and the loop that drives them."""
