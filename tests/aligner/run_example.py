"""An example on a machine without a GPU: the stand-ins, then the script as it is.

Usage: run_example.py SCRIPT ARGUMENTS..., by the Python that has NeMo-Aligner. With RLKD_TEST_DIE_AT=n the process ends
itself without a word after step n, as a lost node would.
"""

import multiprocessing.spawn
import os
import pathlib
import runpy
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import cpu_shim


def import_this_file_in_helpers():
    """A checkpoint's writer starts a helper that imports the main script again; the example would want NeMo there."""
    data_for = multiprocessing.spawn.get_preparation_data

    def data_with_this_file(name):
        return {**data_for(name), "init_main_from_path": __file__}

    multiprocessing.spawn.get_preparation_data = data_with_this_file


def die_after(step):
    from rlkd_nemo.aligner import trainer

    run_training = trainer.RLKDTrainer.run_training

    def then_die(self, *args):
        out = run_training(self, *args)
        if self.step + 1 == step:
            os._exit(9)
        return out

    trainer.RLKDTrainer.run_training = then_die


if __name__ == "__main__":
    cpu_shim.install()
    import_this_file_in_helpers()
    sys.argv = sys.argv[1:]
    if "RLKD_TEST_DIE_AT" in os.environ:
        die_after(int(os.environ["RLKD_TEST_DIE_AT"]))
    runpy.run_path(sys.argv[0], run_name="__main__")
