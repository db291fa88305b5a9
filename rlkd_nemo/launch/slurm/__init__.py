"""A run as a Slurm job: every number that the scripts of slurm/ need, made from the config. No torch.

Commands: `python -m rlkd_nemo.launch.slurm doctor | header | plan | wait | ends | submit`.
"""
