"""The Megatron-Core engine: the only room that imports megatron (apart from the NeMo-Aligner plugin)."""
