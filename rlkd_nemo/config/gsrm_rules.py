"""What must hold between the settings of language models that decompose and judge."""

from __future__ import annotations

from collections.abc import Iterator

from rlkd_nemo.config.schema import Backend, Config, Gsrm, Label


def problems(cfg: Config) -> Iterator[str]:
    """Every broken rule of `gsrm.llm` as one sentence with its key."""
    gsrm = cfg.gsrm
    for role, used, backend in (
        ("decomposer", gsrm.decomposer == "llm", gsrm.llm.decomposer),
        ("judge", gsrm.judge == "llm", gsrm.llm.judge),
    ):
        if used:
            yield from _backend(f"gsrm.llm.{role}", backend, f"gsrm.{role}=llm")
    if gsrm.llm.judging == "per_response" and gsrm.judge != "llm":
        yield f"gsrm.llm.judging=per_response is one call to a model, but gsrm.judge={gsrm.judge}; wanted gsrm.judge=llm"
    if gsrm.llm.judging == "per_response" and (gsrm.alignment != "prefix" or gsrm.reference_mode == "tree"):
        yield (
            "gsrm.llm.judging=per_response compares step i with step i, which gsrm.alignment="
            f"{gsrm.alignment} with gsrm.reference_mode={gsrm.reference_mode} does not; wanted judging=per_pair"
        )
    if gsrm.label.verdicts == "none":
        for name in ("text_pairs", "mixed"):
            if getattr(gsrm.label, name) != getattr(Label(), name):
                yield (
                    f"gsrm.label.{name}={getattr(gsrm.label, name)} chooses what is compared, but gsrm.label.verdicts=none "
                    "compares nothing; wanted verdicts=per_pair, per_response or both"
                )
    if gsrm.llm.lazy == "on":
        reason = not_lazy(gsrm)
        if reason:
            yield f"gsrm.llm.lazy=on cannot be served: {reason}; wanted lazy=auto or off"


def not_lazy(gsrm: Gsrm) -> str | None:
    """Why a decomposition cannot be stopped at the first mismatch without a change of the reward; None: it can."""
    if gsrm.decomposer != "llm":
        return f"gsrm.decomposer={gsrm.decomposer} generates nothing that could be stopped"
    if gsrm.alignment != "prefix":
        return f"gsrm.alignment={gsrm.alignment} looks at steps after a mismatch"
    if gsrm.norm == "max":
        return "gsrm.norm=max needs the number of all of the student's steps"
    if gsrm.reference_mode != "first":
        return f"gsrm.reference_mode={gsrm.reference_mode} compares with more than one reference"
    if gsrm.llm.judging != "per_pair":
        return f"gsrm.llm.judging={gsrm.llm.judging} asks only when all steps are there"
    return None


def _backend(key: str, backend: Backend, because: str) -> Iterator[str]:
    if not backend.urls:
        yield f"{key}.urls=[] but {because}; wanted at least one address such as http://host:8000/v1"
    for url in backend.urls:
        if not url.startswith(("http://", "https://")):
            yield f"{key}.urls has {url!r}; wanted an address that starts with http:// or https://"
    if len(set(backend.urls)) < len(backend.urls):
        yield f"{key}.urls={backend.urls} names an address twice; wanted each once"
    if not backend.model:
        yield f"{key}.model is not set but {because}; wanted the name that the endpoint's /models lists"
