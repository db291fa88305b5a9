"""Deadlines, in processes of their own: they end them."""

import json
import subprocess
import sys

from rlkd_nemo.lifecycle.watchdog import deadline


def run(code):
    header = "import ctypes, time\nfrom rlkd_nemo.lifecycle import watchdog\nfrom rlkd_nemo.lifecycle.watchdog import deadline\n"
    # What no deadline ends sleeps for longer than this.
    return subprocess.run(
        [sys.executable, "-c", header + code], capture_output=True, text=True, timeout=120, check=False
    )


def test_in_time_nothing_happens():
    with deadline(200, "a"), deadline(200, "b"):
        pass
    done = run("watchdog.BACKSTOP_S = 0.1\nwith deadline(2, 'a'): pass\ntime.sleep(2.5)\nprint('on')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "on\n", "")


def test_a_late_phase_is_named_with_the_stacks_of_all_threads():
    code = (
        "import threading\ndef other(): time.sleep(600)\nthreading.Thread(target=other, daemon=True).start()\n"
        "def phase(): time.sleep(600)\nwith deadline(0.2, 'rollout'): phase()\n"
    )
    done = run(code)
    assert done.returncode == 1
    assert "rank 0: rollout took longer than 0.2 s" in done.stderr and "trainer.watchdog_s" in done.stderr
    assert "in phase" in done.stderr and "in other" in done.stderr


def test_the_inner_deadline_leaves_the_outer_in_force():
    done = run("with deadline(0.8, 'step'):\n    with deadline(60, 'save'): pass\n    time.sleep(600)\n")
    assert done.returncode == 1
    assert "step took longer" in done.stderr and "save took longer" not in done.stderr


def test_a_hang_that_holds_pythons_lock_still_ends_with_stacks():
    # PyDLL keeps the lock while C sleeps: no Python thread can speak, faulthandler's own can.
    # The inner block must not take the outer one's backstop with it.
    code = "watchdog.BACKSTOP_S = 0.3\nwith deadline(2, 'kernel'):\n    with deadline(60, 'inner'): pass\n"
    code += "    ctypes.PyDLL(None).sleep(600)\n"
    done = run(code)
    assert done.returncode == 1
    assert "Timeout" in done.stderr and "most recent call first" in done.stderr


def test_who_cannot_write_its_words_still_reports_them_and_tells_the_others(tmp_path):
    code = (
        f"import os\nos.environ['RLKD_REPORTS'] = {str(tmp_path)!r}\n"
        "class Job:\n"
        "    linger_s = 0.0\n"
        "    def silence(self): return 600.0\n"
        "    def table(self): return 'rank 0: lost'\n"
        "    def tell(self, message): print(message, flush=True)\n"
        "watchdog.listen(Job())\n"
        "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)\n"
        "with deadline(0.2, 'rollout'): time.sleep(600)\n"
    )
    done = run(code)
    assert (done.returncode, done.stderr) == (1, "")
    said = json.loads((tmp_path / "0.json").read_text())["message"]
    assert said.startswith("rank 0: rollout took longer than 0.2 s") and done.stdout == f"{said}\n"
