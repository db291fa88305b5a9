"""What can be known before a run starts, without torch: every problem at once, each with the key to change."""
