"""The GSRM as a service: decomposition and judging by language models, behind one scoring core."""
