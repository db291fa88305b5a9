"""What our example and its YAML have that NeMo-Aligner's REINFORCE example has not, and the other way round.

Usage: python tests/aligner/upstream_diff.py FOLDER, a checkout of NeMo-Aligner at v0.7.0 (its wheel has no examples; in
NVIDIA's container it is /opt/NeMo-Aligner). Comments, the order of imports and line breaks are not compared.
"""

import ast
import hashlib
import json
import pathlib
import sys

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
OURS = (ROOT / "examples/aligner/train_gpt_rlkd_actor.py", ROOT / "conf/aligner/gpt_rlkd_actor.yaml")
THEIRS = ("examples/nlp/gpt/train_gpt_reinforce_actor.py", "examples/nlp/gpt/conf/gpt_reinforce_actor.yaml")
# Our name for each of theirs that stands in the same place.
NAMES = {
    "retrieve_rlkd_trainer_state_dict": "retrieve_custom_trainer_state_dict", "rlkd_trainer": "reinforce_trainer",
    "MegatronGPTRLKDActorModel": "MegatronGPTReinforceActorModel", "RLKDTrainer": "ReinforceTrainer",
    "GSRMRewardClient": "RemoteGPTRMClient", "load_model_config": "load_and_override_model_config",
    "gpt_rlkd_actor": "gpt_reinforce_actor",
}  # fmt: skip


def statements(path):
    """Statements of a script in their order, `main`'s among them; imports by themselves, a name each, sorted."""
    text = path.read_text()
    for ours, theirs in NAMES.items():
        text = text.replace(ours, theirs)
    imported, out = set(), []
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom):
            imported |= {f"from {node.module} import {part.name}" for part in node.names}
        elif isinstance(node, ast.Import):
            imported.add(ast.unparse(node))
        elif isinstance(node, ast.FunctionDef):
            out += [f"@{ast.unparse(part)}" for part in node.decorator_list] + _said(node.body)
        else:
            out += _said([node])
    return sorted(imported) + out


def _said(body):
    texts = [isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body]
    return [ast.unparse(node) for node, is_text in zip(body, texts) if not is_text]


def settings(path):
    """{dotted key: value} of a YAML file as written, interpolations unresolved."""
    out = {}

    def walk(tree, prefix):
        for key, value in tree.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                out[f"{prefix}{key}"] = value

    walk(yaml.safe_load(path.read_text()), "")
    return out


def difference(ours, theirs):
    """(only ours, only theirs) of two lists, in their order."""
    return [part for part in ours if part not in theirs], [part for part in theirs if part not in ours]


def digest(what):
    """A short name of a list or mapping, the order of keys aside."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def main(folder):
    script, config = (folder / name for name in THEIRS)
    mine, yours = settings(OURS[1]), settings(config)
    more, less = difference(statements(OURS[0]), statements(script))
    for title, lines in (
        ("YAML, only ours", [f"{k}: {v}" for k, v in mine.items() if k not in yours]),
        ("YAML, only theirs", [f"{k}: {v}" for k, v in yours.items() if k not in mine]),
        ("YAML, another value", [f"{k}: {v}, theirs {yours[k]}" for k, v in mine.items() if yours.get(k, v) != v]),
        ("script, only ours", more),
        ("script, only theirs", less),
    ):
        print(f"== {title}")
        for line in lines:
            print("   " + line.replace("\n", "\n   "))
    print("digests:", digest(statements(script)), digest(yours))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
