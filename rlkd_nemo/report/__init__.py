"""What a run leaves behind for people: metrics, audit, progress, report."""
