"""Starting a job: the command line, the ranks of one machine, and how a rank reports its end. No torch."""
