"""A process that is not to outlive its parent."""

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's kernel does it")
CHILD = "import os; from rlkd_nemo.launch.parent import *; die_with({parent}, signal.{how}); print('tied', flush=True); {then}"


def child(parent, how="SIGTERM", then=""):
    return [sys.executable, "-c", CHILD.format(parent=parent, how=how, then=then)]


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_it_goes_when_its_parent_is_killed(how):
    # The child inherits our end of the pipe: it is closed once both are gone, however long a busy machine takes.
    command = child("os.getppid()", how, "import time; time.sleep(600)")
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.run({command!r})"], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout.readline() == "tied\n"
    parent.kill()
    assert parent.stdout.read() == ""
    parent.wait()
    parent.stdout.close()


def test_it_goes_at_once_where_its_parent_was_gone_before():
    done = subprocess.run(child(os.getpid() + 1), capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "")
