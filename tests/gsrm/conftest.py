import pytest

from rlkd_nemo.types import Step


class ScriptedJudge:
    """Answers from a script: per kind, a string of y and n, one letter a step index; counts its calls."""

    name = "scripted"

    def __init__(self, meta="", question="", answer=""):
        self.answers = {"meta": meta, "question": question, "answer": answer}
        self.calls = []

    def same(self, kind, teacher, student, problem):
        # Texts are "t3" and "s3": the kind's text of step 3. Only equal positions are scripted.
        assert teacher[0] == "t" and student[0] == "s" and teacher[1:] == student[1:]
        self.calls.append(kind)
        return self.answers[kind][int(teacher[1:])] == "y"


class EqualJudge:
    """Plain equality, with its calls kept."""

    name = "equal"

    def __init__(self):
        self.calls = []

    def same(self, kind, teacher, student, problem):
        self.calls.append((kind, teacher, student))
        return teacher == student


def numbered(who, number):
    return [Step(f"{who}{i}", f"{who}{i}", f"{who}{i}") for i in range(number)]


def lettered(text):
    """`a b!` to steps whose meta is the letter; `!`: wrong answer."""
    return [Step(word[0], f"q{word[0]}", "wrong" if word.endswith("!") else f"a{word[0]}") for word in text.split()]


@pytest.fixture
def scripted():
    return ScriptedJudge


@pytest.fixture
def judge():
    return EqualJudge()


@pytest.fixture
def steps_of():
    return numbered


@pytest.fixture
def letters():
    return lettered
