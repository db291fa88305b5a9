"""`gsrm`: the structure reward, its models, its server, and the commands that make its data."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Backend:
    """OpenAI-compatible endpoints of one model, any of which may answer."""

    urls: list[str] = field(default_factory=list)  # e.g. http://host:8000/v1; the least busy one that works is asked
    model: str = ""  # as the endpoint's /models names it
    api_key_env: str | None = None  # environment variable that holds the key; null: no key is sent
    constrain: str = (
        "auto"  # auto: tried at start-up; vllm, json_schema (response_format), none (tags, plain yes or no)
    )
    limit_field: str = "max_tokens"  # max_completion_tokens: OpenAI's reasoning models, which then get no temperature
    reasoning_tokens: int = 0  # added to every limit, for a model that thinks before it replies
    max_concurrency: int = 64  # requests in flight at each url
    connect_timeout_s: float = 5.0
    timeout_s: float = 120.0  # for a whole reply; an item's own deadline may be shorter
    attempts: int = 3  # tries of a request over all urls; 4xx replies are never tried again
    breaker_failures: int = 5  # failures in a row after which a url is left alone
    breaker_cool_s: float = 15.0  # for so long; then one request tries it


@dataclass
class LLM:
    """Decomposition and judging by language models: what `gsrm.decomposer: llm` and `gsrm.judge: llm` use."""

    decomposer: Backend = field(default_factory=Backend)
    judge: Backend = field(default_factory=Backend)
    prompts: str | None = None  # directory whose files take the place of the package's own of the same name
    domain: str = "math"  # prompt for items that name none: math, code, science or puzzle
    max_problem_chars: int = 20_000  # longer problems and texts are cut there, and said to be
    max_text_chars: int = 60_000
    max_tokens: int = 4096  # of a decomposition (RLKD's release: 10,000)
    judging: str = "per_pair"  # per_pair: a call a question (the paper); per_response: one call for all of a response's
    lazy: str = "auto"  # auto: stop a decomposition at the first mismatch where that cannot change the reward; on, off
    eager_share: float = 0.05  # lazy: so many responses are decomposed to the end all the same, to audit their length
    verdicts: str | None = None  # sqlite file of verdicts, shared between processes; null: in memory only
    verdicts_in_memory: int = 100_000
    math_verify_s: float = 2.0  # for one pair of answers, after which the model is asked; 0: always ask the model


@dataclass
class GsrmServer:
    """`examples/serve_gsrm.py`: where it listens and how much it takes on."""

    host: str = "127.0.0.1"  # an address of other machines' reach wants a token
    port: int = 8700
    max_connections: int = 4096  # open at once, idle ones too; one more is told 503
    concurrency: int = 64  # items being scored at once
    queue_items: int = 2048  # items that may wait for that; more are refused (429) until there is room
    items_per_request: int = 256
    body_bytes: int = 33_554_432  # of one request
    text_chars: int = 400_000  # of one problem, response or reference; a longer one is a typed failure of its item
    deadline_s: float = 120.0  # for one item, queueing included; a request may ask for less
    cache_bytes: int = 268_435_456  # results kept by content; about 5 KB each
    startup_s: float = 300.0  # how long it waits for its models' endpoints, which may still load, before it gives up
    retry_after_s: int = 1  # what a refused client is told to wait
    drain_s: float = 60.0  # after SIGTERM: for items in flight
    log_level: str = "INFO"  # DEBUG: a line a request


@dataclass
class GsrmService:
    """The trainer's side of `gsrm.scorer: service`: whom it asks, and how patiently."""

    urls: list[str] = field(default_factory=lambda: ["http://127.0.0.1:8700"])  # several share the work
    items_per_request: int = 8
    concurrency: int = 16  # requests in flight, of each rank
    deadline_s: float = 120.0  # for one item; at most the server's counts
    attempts: int = 4  # of a request that could not be delivered or was refused, over all urls
    backoff_s: float = (
        0.25  # before the second attempt, doubled each time, with jitter; Retry-After counts where longer
    )
    startup_s: float = 30.0  # for a server to be ready before the first step
    probe_interval: int = 10  # steps between probes of the service with known answers (gsrm/audit.py); 0: none
    probes: int = 4  # of each kind
    pause_s: float = 300.0  # how long training waits for a scorer that fails, before it stops


@dataclass
class Prefill:
    """`examples/decompose_references.py`: references decomposed before a run needs them."""

    num_problems: int | None = None  # of the train and of the validation stream; null: every problem of a prompt file
    concurrency: int = 32  # references in flight
    per_s: float | None = None  # most calls of the decomposer in a second, tries after a failure included


@dataclass
class GsrmTraining:
    """`examples/train_gsrm.py`: supervised training of the GSRM itself, batches as in `data` and `trainer.sft`."""

    data: str = ""  # file of rows (gsrm/dataset.py)
    held_out: float = 0.0  # share of the problems, by their hash, that is kept for gsrm.evaluation
    form: str = "json"  # of a decomposition; json: for constrained decoding; tags: for endpoints that offer none
    epochs: float | None = None  # passes over the rows; null: trainer.sft.max_steps updates
    drop_longer: bool = False  # leave out, and count, rows longer than model.encoder_seq_length, which is an error else
    export: str | None = None  # Hugging Face directory for the result; null: <exp_dir>/hf


@dataclass
class Label:
    """`examples/label_gsrm_data.py`: training data for a GSRM, all by the model of `gsrm.llm.decomposer`."""

    out: str | None = None  # rows as gsrm/dataset.py has them; null: <exp_dir>/gsrm_data.jsonl
    num_problems: int | None = None  # null: every problem of a prompt file
    concurrency: int = 32  # texts in flight
    per_s: float | None = None  # most calls in a second, tries after a failure included; null: no limit
    verdicts: str = "none"  # rows that compare steps: none; per_pair, per_response (as gsrm.llm.judging); both
    text_pairs: int = 1  # of a problem's texts, two by two, that are compared
    mixed: int = 1  # more for each of them, with steps of other places and problems, which mostly differ


@dataclass
class Evaluation:
    """`examples/evaluate_gsrm.py`: the configured decomposer and judge against labelled rows."""

    data: str = ""  # file of rows (gsrm/dataset.py)
    held_out: float = 1.0  # share of the problems that are measured: those that a split with this share holds out
    concurrency: int = 32  # rows in flight


@dataclass
class Gsrm:
    """The structure reward (papers: RLKD section on GSRM)."""

    scorer: str = "embedded"  # embedded: in the trainer's processes; service: by servers (gsrm.service.urls)
    decomposer: str = "text"  # text: the response carries its steps; llm: a model finds them
    judge: str = "normalised"  # exact or normalised comparison; llm: a model decides
    reference_mode: str = "first"  # first (the paper), best, tree
    alignment: str = "prefix"  # prefix (the paper), monotone
    norm: str = "teacher"  # teacher: divide by its steps; none: released code; max: punishes padding
    reference_store: str | None = None  # directory; null: <exp_dir>/references
    llm: LLM = field(default_factory=LLM)
    service: GsrmService = field(default_factory=GsrmService)
    server: GsrmServer = field(default_factory=GsrmServer)
    prefill: Prefill = field(default_factory=Prefill)
    training: GsrmTraining = field(default_factory=GsrmTraining)
    label: Label = field(default_factory=Label)
    evaluation: Evaluation = field(default_factory=Evaluation)
    token_env: str = "RLKD_GSRM_TOKEN"  # environment variable with the bearer token; unset: none is wanted, or sent
