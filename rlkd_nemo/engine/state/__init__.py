"""Optimizer, schedule and checkpoints."""
