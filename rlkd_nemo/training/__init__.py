"""The loop: batches, one step, the fit loop and the checks before it."""
