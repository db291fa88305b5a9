"""How a job stops: on a signal after saving, or with stacks when a phase hangs."""
