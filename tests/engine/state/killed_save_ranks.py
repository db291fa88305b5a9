"""Rank script: a whole checkpoint, then rank 1 dies by SIGKILL with half of the next one on disk.

Usage: killed_save_ranks.py DIRECTORY
"""

import os
import pathlib
import signal
import sys

from rlkd_nemo.engine.ranks import init_ranks

from torch.distributed.checkpoint import filesystem

from rlkd_nemo.config.schema import Model
from rlkd_nemo.engine.actor import RLKDActor
from rlkd_nemo.engine.state.checkpoint import save_checkpoint


def main(root):
    ranks = init_ranks(2, 1)
    model = Model(num_layers=1, hidden_size=32, ffn_hidden_size=48, tensor_model_parallel_size=2)
    actor = RLKDActor(model, 19, ranks, pad_id=0)
    save_checkpoint(root, 1, actor, extra={}, tokenizer_pieces=["x"])

    write, written = filesystem._write_item, []

    def dies_midway(*args):
        if ranks.world_rank == 1 and len(written) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(args)
        return write(*args)

    filesystem._write_item = dies_midway
    save_checkpoint(root, 2, actor, extra={}, tokenizer_pieces=["x"])


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
