"""Rows to training examples: the served prompt, the schema's reply, nothing lost."""

import json
import random
from importlib import resources

import pytest

from rlkd_nemo import tasks
from rlkd_nemo.config.schema import ExpressionsTask
from rlkd_nemo.errors import InputError
from rlkd_nemo.gsrm import dataset, demonstrations, schema, verdict_reply
from rlkd_nemo.gsrm.chat_template import ChatTemplate
from rlkd_nemo.gsrm.demonstrations import Demonstrations
from rlkd_nemo.gsrm.prompting import Prompts
from rlkd_nemo.gsrm.vocabulary import EOS, write_tokenizer
from rlkd_nemo.tasks import expression_labels, expression_prose
from rlkd_nemo.tokenizer import HuggingFaceTokenizer
from rlkd_nemo.types import Step

PROMPTS = Prompts(str(resources.files("rlkd_nemo.gsrm") / "prompts_short"))


@pytest.fixture(scope="module")
def task():
    return tasks.build(ExpressionsTask(style="prose"))


@pytest.fixture(scope="module")
def rows(task):
    made = expression_labels.texts(task, "train", 0, "3-4", 60, altered=0.4, cut=0.1)
    found = [
        dataset.DecompositionRow(f"d{i}", "math", problem.prompt, text, tuple(steps))
        for i, (problem, text, steps) in enumerate(made)
    ]
    asked = task.generate("train", 0, "3-4", 30)
    return found + [
        dataset.VerdictRow(f"v{i}", problem.prompt, "meta", "c", "bc"[i % 2], bool(i % 2))
        for i, problem in enumerate(asked)
    ]


@pytest.fixture(scope="module")
def directory(rows, tmp_path_factory):
    texts = [m["content"] for row in rows for m in dataset.conversation(row, PROMPTS, "json").messages]
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"), texts)


def build(rows, directory, **changes):
    how = {"form": "json", "max_tokens": 256} | changes
    return Demonstrations(rows, PROMPTS, ChatTemplate(directory), HuggingFaceTokenizer(directory), **how)


def take(examples, n, start=0, seed=0):
    return examples.demonstrations("train", seed, "any", n, strategies=[], noise=0.0, start=start)


def test_labels_are_what_the_text_says(rows):
    whole = [row for row in rows if isinstance(row, dataset.DecompositionRow)]
    assert len(whole) >= 55 and all(list(row.steps) == expression_prose.decompose(row.text) for row in whole)
    assert any(not row.text.endswith(". ") for row in whole)  # cut off
    assert all(dataset.parse(json.loads(dataset.line(row))) == row for row in rows)


def test_a_longer_list_of_labels_begins_alike(task):
    short, long = (list(expression_labels.texts(task, "train", 0, "3", n, 0.4, 0.1)) for n in (90, 230))
    assert long[: len(short)] == short and len(long) > 220


def test_prompts_are_the_served_ones_and_replies_read_back(rows, directory):
    tokens, template = HuggingFaceTokenizer(directory), ChatTemplate(directory)
    by_id = {row.id: row for row in rows}
    for problem, reply in take(build(rows, directory), len(rows)):
        row = by_id[problem.id]
        talk = dataset.conversation(row, PROMPTS, "json")
        assert problem.prompt == template.prompt(talk.messages) and reply == talk.completion
        assert tokens.decode(tokens.encode(reply)) == reply
        if isinstance(row, dataset.DecompositionRow):
            assert schema.read(reply, "json") == list(row.steps)
        else:
            assert reply == ("yes" if row.same else "no")


def test_all_verdicts_of_a_response_are_trained_as_they_are_served(rows, directory):
    pair = dataset.Pair({"meta": "c", "answer": "1"}, {"meta": "b", "answer": "1"}, {"meta": False, "answer": True})
    row = dataset.ResponseRow("a", rows[0].problem, (pair, pair))
    ((problem, reply),) = take(build([row], directory, max_tokens=4000), 1)
    asked = [
        {"number": n, "fields": ["meta", "answer"], "teacher": pair.teacher, "student": pair.student} for n in (1, 2)
    ]
    served = PROMPTS.all_questions(asked, row.problem)
    assert problem.prompt == ChatTemplate(directory).prompt(served.messages)
    assert verdict_reply.read_verdicts(reply, {1: pair.same, 2: pair.same}) == row.verdicts


def test_each_pass_has_every_row_once_in_an_order_of_its_own(rows, directory):
    examples, n = build(rows, directory), len(rows)
    first, second = ([p.id for p, _ in take(examples, n, start)] for start in (0, n))
    assert sorted(first) == sorted(second) == sorted(row.id for row in rows) and first != second
    assert [p.id for p, _ in take(examples, 20, n - 10)] == first[-10:] + second[:10]
    assert [p.id for p, _ in take(build(rows, directory), n)] == first  # resumable
    assert [p.id for p, _ in take(examples, n, seed=1)] != first
    assert build(rows[:-1], directory).fingerprint != examples.fingerprint == build(rows, directory).fingerprint


def test_longer_rows_are_refused_or_counted(rows, directory):
    with pytest.raises(InputError, match=r"rows have more tokens than model.encoder_seq_length=60, the longest \d+ "):
        build(rows, directory, max_tokens=60)
    kept = build(rows, directory, max_tokens=60, drop_longer=True)
    assert kept.dropped == len(rows) - len(kept) > 0
    with pytest.raises(InputError, match="no row is left"):
        build(rows, directory, max_tokens=3, drop_longer=True)


def test_held_out_problems_are_not_trained_on(rows, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(map(dataset.line, rows)))
    kept = demonstrations.read(file, 0.5, "json")
    _, out = dataset.split(rows, 0.5)
    assert 0 < len(kept) < len(rows) and not {row.problem for row in kept} & {row.problem for row in out}
    with pytest.raises(InputError, match="leaves no row"):
        demonstrations.read(file, 1.0, "json")


def test_the_vocabulary_reads_a_fence_as_one_token_and_anything_at_all(directory):
    tokens = HuggingFaceTokenizer(directory)
    a, b = (tokens.encode(f"<<<{word}\nnext c\n{word}>>>") for word in ("0123456789abcdef", "fedcba9876543210"))
    assert a == b and len(a) <= 8
    assert tokens.pieces()[tokens.eos_id] == EOS and EOS not in tokens.decode([tokens.eos_id])
    assert tokens.decode(tokens.encode("Q: 7^x \t?")) == "Q: 7^x <unk>?"
    assert tokens.vocab_size < 400


def test_equal_texts_give_an_equal_tokenizer(tmp_path):
    made = [write_tokenizer(tmp_path / name, ["one two", "two three"]) for name in "ab"]
    assert all((made[1] / file.name).read_bytes() == file.read_bytes() for file in made[0].iterdir())


def test_altered_steps_need_the_tasks_own():
    with pytest.raises(AssertionError):
        expression_labels._other(Step("a", "two", "3"), 3, 5, random.Random(0))
