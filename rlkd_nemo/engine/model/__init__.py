"""Building Megatron-Core models from the config."""
