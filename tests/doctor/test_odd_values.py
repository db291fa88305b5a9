"""No value of any setting makes the rules or the doctor fall over: they report it, or it is fine."""

import dataclasses

from rlkd_nemo.config.load import load
from rlkd_nemo.config.rules import check
from rlkd_nemo.doctor.run import examine

ODD = {int: (0, -1), float: (0.0, float("nan")), str: ("", "\x00"), list: ([], ["http://[bad"])}


def leaves(node, path=()):
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, (*path, field.name))
        else:
            yield (*path, field.name), value


def test_every_setting_with_odd_values(monkeypatch):
    # Once, not nine hundred times: what is installed does not depend on the config.
    monkeypatch.setattr("rlkd_nemo.doctor.versions.findings", lambda cfg: [])
    cfg = load("rlkd_70b_to_8b")
    tried = 0
    for path, value in list(leaves(cfg)):
        for odd in ODD.get(type(value), ()):
            node = cfg
            for name in path[:-1]:
                node = getattr(node, name)
            object.__setattr__(node, path[-1], odd)  # some settings are frozen
            problems, findings = check(cfg), examine(cfg, {"SLURM_JOB_ID": "1"})
            object.__setattr__(node, path[-1], value)
            assert all(isinstance(text, str) for text in problems) and all(one.text for one in findings)
            tried += 1
    assert tried > 400
