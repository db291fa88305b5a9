"""Sampling on the training ranks: weights out of Megatron, a KV cache, named random numbers."""
