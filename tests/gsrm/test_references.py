import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from rlkd_nemo.errors import InputError, ServiceError
from rlkd_nemo.gsrm.references import ReferenceStore
from rlkd_nemo.types import Step

ROOT = Path(__file__).resolve().parents[2]


class Counting:
    """One step a word; counts how often it is asked."""

    def __init__(self, version="words-1"):
        self.version, self.calls = version, 0

    def decompose(self, problem, text):
        self.calls += 1
        return [Step(word, None, "é\u2028\ud800") for word in text.split()]


@pytest.fixture
def stored(tmp_path):
    def files():
        return sorted(tmp_path.rglob("*.json"))

    return files


def test_decomposed_once_ever(tmp_path, stored):
    words = Counting()
    first = ReferenceStore(tmp_path)
    assert first.steps("p", "a b", words) == first.steps("p", "a b", words)
    again = ReferenceStore(tmp_path)
    assert again.steps("p", "a b", words) == [Step("a", None, "é\u2028\ud800"), Step("b", None, "é\u2028\ud800")]
    assert words.calls == 1 and len(stored()) == 1
    assert not list(tmp_path.rglob("*.tmp"))


def test_another_text_problem_or_version_is_another_entry(tmp_path, stored):
    store, words, newer = ReferenceStore(tmp_path), Counting(), Counting("words-2")
    store.steps("p", "a", words)
    store.steps("p", "b", words)
    store.steps("q", "a", words)
    store.steps("p", "a", newer)
    assert (words.calls, newer.calls, len(stored())) == (3, 1, 4)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"meta"', '"mata"'),
        lambda text: text.replace('"meta": "a"', '"meta": 5'),
        lambda text: text.replace('"key": "', '"key": "0'),
        lambda text: json.dumps({**json.loads(text), "value": 3}),
    ],
)
def test_a_damaged_entry_is_made_anew_with_a_warning(tmp_path, stored, caplog, damage):
    words = Counting()
    wanted = ReferenceStore(tmp_path).steps("p", "a", words)
    (path,) = stored()
    whole = path.read_text()
    assert damage(whole) != whole
    path.write_text(damage(whole))
    with caplog.at_level(logging.WARNING):
        assert ReferenceStore(tmp_path).steps("p", "a", words) == wanted
    assert words.calls == 2 and "damaged" in caplog.text and path.name in caplog.text
    assert path.read_text() == whole


def test_a_failure_is_not_stored(tmp_path, stored):
    class Failing(Counting):
        def decompose(self, problem, text):
            if self.calls == 0:
                self.calls += 1
                raise ServiceError("down")
            return super().decompose(problem, text)

    store, words = ReferenceStore(tmp_path), Failing()
    with pytest.raises(ServiceError):
        store.steps("p", "a", words)
    assert stored() == [] and len(store.steps("p", "a", words)) == 1


def test_a_write_that_dies_half_way_leaves_nothing(tmp_path, stored, monkeypatch):
    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("rlkd_nemo.gsrm.references.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        ReferenceStore(tmp_path).steps("p", "a", Counting())
    assert stored() == [] and not list(tmp_path.rglob("*.tmp"))


def test_a_tree_is_merged_once(tmp_path, judge, letters):
    references = [letters("a b"), letters("a c")]
    assert ReferenceStore(tmp_path).tree("p", references, judge) == [[0, 1], [0, 2]]
    calls = len(judge.calls)
    assert ReferenceStore(tmp_path).tree("p", references, judge) == [[0, 1], [0, 2]] and len(judge.calls) == calls > 0
    # other references, another tree
    assert ReferenceStore(tmp_path).tree("p", references[:1], judge) == [[0, 1]]


def test_memory_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("rlkd_nemo.gsrm.references.IN_MEMORY", 3)
    store, words = ReferenceStore(tmp_path), Counting()
    for _ in range(2):
        for text in "abcde":
            assert store.steps("p", text, words)[0].meta == text
    assert words.calls == 5 and len(store._seen) == 3


WRITER = """
import sys
from rlkd_nemo.gsrm.references import ReferenceStore
from rlkd_nemo.types import Step
class Words:
    def decompose(self, problem, text):
        return [Step(f"{text}-{i}") for i in range(200)]
for number in range(20):  # new entries in every round, so that all processes miss at once
    Words.version = f"words-{number}"
    store = ReferenceStore(sys.argv[1])
    for number in range(10):
        assert len(store.steps("p", str(number), Words())) == 200
"""


@pytest.mark.ranks
def test_several_processes_write_and_read_the_same_entries(tmp_path, stored):
    processes = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", WRITER, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    errors = [process.communicate(timeout=240)[1].decode() for process in processes]
    # a half-written entry would have been reported as damaged on stderr
    assert errors == [""] * 3 and all(process.returncode == 0 for process in processes)
    assert len(stored()) == 200 and not list(tmp_path.rglob("*.tmp"))


def test_a_place_that_cannot_be_a_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"gsrm\.reference_store"):
        ReferenceStore(tmp_path / "file")
