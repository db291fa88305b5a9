import subprocess
import sys
from importlib import metadata

import pytest

from rlkd_nemo.aligner import compat
from rlkd_nemo.errors import ConfigError
from tests.aligner import nemo_python as nemo


def test_missing_packages_are_one_message_with_what_to_use():
    with pytest.raises(ConfigError) as error:
        compat.check({"no-such-package-a": "0.7.0", "no-such-package-b": "2.1.0"})
    message = str(error.value)
    assert "no-such-package-a is not installed (wanted 0.7.0)" in message and "no-such-package-b" in message
    assert compat.CONTAINER in message and "make venv-aligner" in message


def test_another_release_is_named_and_a_patch_is_not(monkeypatch):
    monkeypatch.setattr(metadata, "version", {"a": "0.8.0", "b": "2.1.3+local"}.__getitem__)
    assert compat.problems({"a": "0.7.0", "b": "2.1.0"}) == ["a is 0.8.0 (wanted 0.7.0)"]


def test_names_taken_without_the_packages_say_so_and_the_core_stays_usable():
    code = (
        "import rlkd_nemo.losses\nimport rlkd_nemo.aligner\nfrom rlkd_nemo.errors import ConfigError\n"
        "for name in rlkd_nemo.aligner.__all__:\n"
        "    try:\n        getattr(rlkd_nemo.aligner, name)\n"
        "    except ConfigError as error:\n        print(name, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=nemo.ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 5 and all("rlkd_nemo.aligner cannot run here: n" in line for line in lines), done.stderr
