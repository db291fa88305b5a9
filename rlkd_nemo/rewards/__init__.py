"""Reward components of a rollout, and their weighted sum."""
