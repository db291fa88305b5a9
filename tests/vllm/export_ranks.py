"""Rank script: each Hugging Face model under DIRECTORY in through the engine and out again as <name>-export.

Usage: export_ranks.py TP DIRECTORY NAME...
"""

import pathlib
import sys

from rlkd_nemo.engine.ranks import close_ranks, init_ranks

from rlkd_nemo.config.schema import Model
from rlkd_nemo.engine.hugging_face.config import model_from_hugging_face
from rlkd_nemo.engine.hugging_face.load import load_hugging_face
from rlkd_nemo.engine.hugging_face.save import save_hugging_face
from rlkd_nemo.engine.model.build import build_model


def main(tp, root, names):
    ranks = init_ranks(tp, 1)
    for name in names:
        settings = model_from_hugging_face(
            root / name, Model(encoder_seq_length=48, tensor_model_parallel_size=tp, pipeline_model_parallel_size=1)
        )
        model = build_model(settings, 61, ranks)
        load_hugging_face(root / name, model)
        save_hugging_face(model, root / f"{name}-export", family=name.partition("_")[0])
    close_ranks()


if __name__ == "__main__":
    main(int(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3:])
