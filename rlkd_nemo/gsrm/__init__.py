"""The structure reward (arXiv:2505.16142): reasoning to steps, and how far the student's follow the teacher's."""
