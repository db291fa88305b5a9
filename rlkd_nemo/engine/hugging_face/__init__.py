"""Hugging Face directories in and out: config.json and sharded safetensors."""
