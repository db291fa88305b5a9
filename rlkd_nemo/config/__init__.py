"""Configuration without torch: schema, rules between keys, loading with overrides."""
