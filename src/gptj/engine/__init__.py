"""Text from a model: sampling, the key-value cache, the jitted programs, and the loop over them."""
