"""Checks before a run, on a login node, in a second or two: config, allocation, files, ports, versions, vocabularies.

python examples/doctor.py --config-name=rlkd_70b_to_8b model.optim.lr=2e-6
"""

import sys

from rlkd_nemo.doctor.run import main

if __name__ == "__main__":
    sys.exit(main(description=__doc__))
