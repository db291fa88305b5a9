"""Deadlines, in processes of their own: they end them."""

import subprocess
import sys
import time

from rlkd_nemo.lifecycle.watchdog import deadline


def run(code):
    header = "import ctypes, time\nfrom rlkd_nemo.lifecycle import watchdog\nfrom rlkd_nemo.lifecycle.watchdog import deadline\n"
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", header + code], capture_output=True, text=True, timeout=30, check=False
    )
    return done, time.monotonic() - started


def test_in_time_nothing_happens():
    with deadline(5, "a"), deadline(5, "b"):
        pass
    done, _ = run("with deadline(0.2, 'a'): pass\ntime.sleep(0.6)\nprint('on')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "on\n", "")


def test_a_late_phase_is_named_with_the_stacks_of_all_threads():
    code = (
        "import threading\ndef other(): time.sleep(60)\nthreading.Thread(target=other, daemon=True).start()\n"
        "def phase(): time.sleep(60)\nwith deadline(0.2, 'rollout'): phase()\n"
    )
    done, seconds = run(code)
    assert done.returncode == 1 and seconds < 15
    assert "rank 0: rollout took longer than 0.2 s" in done.stderr and "trainer.watchdog_s" in done.stderr
    assert "in phase" in done.stderr and "in other" in done.stderr


def test_the_inner_deadline_leaves_the_outer_in_force():
    done, _ = run("with deadline(0.8, 'step'):\n    with deadline(0.3, 'save'): pass\n    time.sleep(60)\n")
    assert done.returncode == 1
    assert "step took longer" in done.stderr and "save took longer" not in done.stderr


def test_a_hang_that_holds_pythons_lock_still_ends_with_stacks():
    # PyDLL keeps the lock while C sleeps: no Python thread can speak, faulthandler's own can.
    # The inner block must not take the outer one's backstop with it.
    code = "watchdog.BACKSTOP_S = 0.3\nwith deadline(0.4, 'kernel'):\n    with deadline(9, 'inner'): pass\n"
    code += "    ctypes.PyDLL(None).sleep(20)\n"
    done, seconds = run(code)
    assert done.returncode == 1 and seconds < 10
    assert "Timeout" in done.stderr and "most recent call first" in done.stderr
