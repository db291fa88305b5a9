"""Every setting, its default and where the default comes from; NeMo's key names where NeMo has one.

Polymorphic groups carry `name`: `objective.name` picks a class of `objectives.py`, `task.name` one of `TASKS` below,
and the other keys of that group are that class's fields. An unknown key is an error (load.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class SFTLoop:
    """`trainer.sft`: how long, how often."""

    max_steps: int = 1000
    save_interval: int = 1000  # checkpoint after every k steps and after the last; 0: only after the last
    gradient_clip_val: float = 1.0  # global L2 norm; 0: no clipping (RLKD's release uses 0.2)


@dataclass
class Loop(SFTLoop):
    """`trainer.rlkd`: the same, with validation."""

    max_steps: int = 30
    save_interval: int = 10
    val_check_interval: int = 10  # validate before the first step, after every k and after the last; 0: never


@dataclass
class Trainer:
    """Ranks and precision."""

    num_nodes: int = 1
    devices: int | None = None  # ranks a node; null: tensor x pipeline x context parallel size / num_nodes, at least 2
    accelerator: str = "auto"  # auto: gpu where there is one, else cpu
    precision: str = "32"  # 32 or bf16 (fp32 master weights, fp32 log-probs)
    watchdog_s: float = 45.0  # longest time without progress (a micro-batch, a token) before the job ends with stacks
    heartbeat_s: float = 30.0  # longest time without a sign of life from a rank's process
    collective_timeout_s: float = 1800.0  # longest wait for a rank that still gets on, and longest save
    rlkd: Loop = field(default_factory=Loop)
    sft: SFTLoop = field(default_factory=SFTLoop)


@dataclass
class CheckpointCallback:
    """Which checkpoints stay."""

    save_last: int = 2  # newest n; two, so that a damaged newest one has another before it
    save_top_k: int = 1  # best k by `monitor`
    monitor: str = "validation/accuracy"
    mode: str = "max"
    async_save: bool = False  # training goes on while a copy of its state is written


@dataclass
class ExpManager:
    """Where results go and who is told."""

    exp_dir: str = "results/rlkd"
    resume_if_exists: bool = True
    # DD:HH:MM:SS from the allocation's start; then save and exit 3. null: Slurm's end, if there is one.
    max_time_per_run: str | None = None
    stop_margin_s: float | None = None  # kept free before that end; null: learned from the steps and saves so far
    create_tensorboard_logger: bool = True
    create_wandb_logger: bool = False
    wandb_project: str = "rlkd_nemo"
    wandb_mode: str = "offline"  # offline, online or disabled
    audit_rollouts: int = 32  # rollouts a step written to rollouts/*.jsonl; -1: all
    checkpoint_callback_params: CheckpointCallback = field(default_factory=CheckpointCallback)


@dataclass
class Schedule:
    """Learning-rate schedule, in optimizer updates."""

    name: str = "constant"  # constant, linear, cosine
    warmup_steps: int = 0
    warmup_ratio: float | None = None  # share of the decay's updates, in place of warmup_steps
    decay_steps: int | None = None  # null: the whole run
    min_lr: float = 0.0


@dataclass
class Optim:
    """AdamW (Megatron's optimizer)."""

    lr: float = 1e-6  # RLAD
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    use_distributed_optimizer: bool = False  # moments and fp32 masters cut over data-parallel ranks (arXiv:1910.02054)
    overlap_grad_sync: bool = False  # gradients travel while the rest of the backward pass runs
    overlap_param_sync: bool = False  # updated weights travel while the next forward pass runs
    bucket_size: int | None = None  # parameters that travel together; null: Megatron's, 40 million or 1 million a rank
    use_precision_aware_optimizer: bool = False  # states in the types below (Transformer Engine's Adam)
    main_params_dtype: str = "fp32"  # fp32, fp16; fp32 costs two bytes beside bf16 weights
    exp_avg_dtype: str = "fp32"  # fp32, bf16, fp16, fp8
    exp_avg_sq_dtype: str = "fp32"  # fp32, bf16, fp16, fp8
    offload_states: bool = False  # moments and masters in host memory while rollouts are sampled and scored
    sched: Schedule = field(default_factory=Schedule)


@dataclass
class TokenizerConfig:
    """`task`: the task's closed vocabulary; `bytes`: UTF-8 bytes; `huggingface`: a tokenizer directory in `type`."""

    library: str = "task"
    type: str | None = None


@dataclass
class RopeScaling:
    """Longer contexts by slower rotations; `llama3` as in Llama 3.1, `yarn` as in arXiv:2309.00071."""

    type: str = "none"  # none, llama3, yarn
    factor: float = 8.0  # how many times longer the context became
    original_max_position_embeddings: int = 8192  # the context before
    low_freq_factor: float = 1.0  # llama3: wavelengths above the old context over this are stretched whole
    high_freq_factor: float = 4.0  # llama3: those below the old context over this are left alone
    beta_fast: float = 32.0  # yarn: channels that turn this often over the old context are left alone
    beta_slow: float = 1.0  # yarn: those that turn less often than this are stretched whole
    attention_factor: float | None = None  # yarn: scales cosines and sines; null: 0.1 ln(factor) + 1
    truncate: bool = True  # yarn: round the bounds of that range outwards to whole channels


@dataclass
class Model:
    """A decoder-only transformer: RMSNorm, SwiGLU, RoPE, grouped-query attention."""

    restore_from_path: str | None = None  # checkpoint or Hugging Face directory to start from; null: random
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    num_layers: int = 4
    hidden_size: int = 96
    ffn_hidden_size: int = 192
    num_attention_heads: int = 4
    num_query_groups: int = 2
    kv_channels: int | None = None  # null: hidden_size / num_attention_heads
    add_qkv_bias: bool = False  # Qwen2
    qk_layernorm: bool = False  # Qwen3: RMSNorm of each head's query and key
    encoder_seq_length: int = 128  # context: prompt + response, tokens
    max_position_embeddings: int | None = None  # context that an export promises; null: encoder_seq_length
    rotary_base: float = 10000.0
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    layernorm_epsilon: float = 1e-5
    init_method_std: float = 0.02
    share_embeddings_and_output_weights: bool = False
    make_vocab_size_divisible_by: int = 8  # times tensor_model_parallel_size, as Megatron pads
    tensor_model_parallel_size: int = 2
    pipeline_model_parallel_size: int = 1
    virtual_pipeline_model_parallel_size: int | None = (
        None  # pieces of the model a stage, for smaller bubbles; null: one
    )
    sequence_parallel: bool = False  # cut norms and residuals over the tensor-parallel ranks too (arXiv:2205.05198)
    transformer_impl: str = "auto"  # local, transformer_engine; auto: the second on a GPU where it is installed
    # FP8 matrix products through Transformer Engine (arXiv:2209.05433); weights stay bf16 with fp32 masters, and the
    # output layer bf16. e4m3; hybrid: e4m3 forward, e5m2 for gradients; null: off.
    fp8: str | None = None
    fp8_recipe: str = "delayed"  # scales from past maxima; tensorwise: the tensor's own; blockwise, mxfp8: its blocks'
    fp8_margin: int = 0  # delayed: scales are 2 ** margin smaller than the maximum allows
    fp8_amax_history_len: int = 1  # delayed: past maxima kept
    fp8_amax_compute_algo: str = "most_recent"  # delayed: most_recent, max (of the history)
    fp8_wgrad: bool = True  # delayed: weight gradients in FP8 too
    fp8_dot_product_attention: bool = False  # delayed, tensorwise: scores in FP8 too
    fp8_multi_head_attention: bool = False  # delayed: what flows between projections and scores too
    first_last_layers_bf16: bool = False  # all but delayed: the layers at both ends stay bf16
    num_layers_at_start_in_bf16: int = 1
    num_layers_at_end_in_bf16: int = 1
    context_parallel_size: int = 1  # ranks that share the tokens of each row
    micro_batch_size: int = 64  # sequences a rank's forward-backward takes at once
    forward_micro_batch_size: int = 128  # the same for forward-only log-probs
    micro_batch_tokens: int | None = None  # tokens a rank, padding included, instead; null: count sequences
    forward_micro_batch_tokens: int | None = None  # the same for forward-only log-probs
    packed_sequences: bool = False  # rows of a micro-batch end to end instead of padded to the longest
    # Tokens of a tile of logits; a tile takes 64 MiB whatever the vocabulary, and up to four wait for backward.
    log_prob_chunk_tokens: int = 4096
    # Activations thrown away and made again in backward; full: whole layers; selective: core
    # attention only, which spares next to nothing where the kernel is fused, as it is here.
    activations_checkpoint_granularity: str | None = None  # full, selective; null: all are kept
    activations_checkpoint_method: str | None = None  # full: uniform (units of num_layers), block (the first of them)
    activations_checkpoint_num_layers: int | None = None  # full: of each pipeline stage
    seed: int = 0
    optim: Optim = field(default_factory=Optim)


@dataclass
class Data:
    """SFT batches and prompt streams."""

    global_batch_size: int = 32  # SFT: sequences an update
    num_paths: int | None = None  # SFT: so many fixed examples, repeated; null: fresh ones for ever
    strategies: list[str] = field(default_factory=lambda: ["post"])  # SFT: orders of the paths (task)
    noise: float = 0.0  # SFT: probability that a sub-answer is wrong (task)
    train_difficulty: str = "3-4"
    validation_difficulty: str | None = None  # null: as train
    shuffle_seed: int = 0


@dataclass
class Advantage:
    """Group advantages (arXiv:2402.03300, 2602.22495)."""

    std: str = "population"  # population (RLAD), sample (TRL, RLKD's release: sample + 1e-4), none (Dr. GRPO)


@dataclass
class DynamicSampling:
    """DAPO: drop groups whose rewards are all equal and sample others in their place."""

    enabled: bool = False
    max_rounds: int = 3  # extra sampling rounds a step; then go on with what there is
    by: str = "reward"  # reward (the weighted sum) or outcome


@dataclass
class Overlong:
    """What becomes of truncated responses."""

    mode: str = "keep"  # keep; mask: out of group statistics and loss; soft: DAPO's length penalty
    buffer_tokens: int = 16  # soft: penalty grows over the last so many tokens before max_new_tokens


@dataclass
class Rlkd:
    """One step: rollouts, scores, updates."""

    num_prompts: int = 16  # groups a step
    group_size: int = 8  # RLAD's logic runs
    updates_per_batch: int = 1  # optimizer updates the rollouts are split into, by whole groups
    epochs: int = 1  # passes over the rollouts
    max_failed_fraction: float = 0.05  # above: stop (design: a failure is never a score)
    advantage: Advantage = field(default_factory=Advantage)
    dynamic_sampling: DynamicSampling = field(default_factory=DynamicSampling)
    overlong: Overlong = field(default_factory=Overlong)


@dataclass
class Reward:
    """Weights of the sum; 3:3:2:2 is RLKD's (arXiv:2505.16142, as reported), each component on [0, 1]."""

    outcome: float = 3.0
    structure: float = 3.0
    format: float = 2.0
    tag: float = 2.0
    structure_only_if_correct: bool = False


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


@dataclass
class TeacherConfig:
    """The frozen model that gives log-probs; its architecture is read from its checkpoint."""

    restore_from_path: str | None = None


@dataclass
class RolloutConfig:
    """The sampler."""

    engine: str = "embedded"
    tensor_model_parallel_size: int = 1  # 1: every rank decodes its own share on gathered weights
    batch_size: int = 128  # sequences a rank decodes at once
    temperature: float = 1.0
    top_p: float = 1.0  # anything but 1 is refused in training: the ratio would be biased
    top_k: int = 0
    max_new_tokens: int = 64


@dataclass
class Validation:
    """Held-out problems."""

    num_problems: int = 100
    samples: int = 4
    temperature: float = 0.6
    max_new_tokens: int | None = None  # null: as rollout


@dataclass
class Gate:
    """Checks before the first step."""

    max_log_prob_gap: float = 2e-3  # nats, mean absolute, sampler against trainer on the first rollouts
    # The same with model.fp8, whose sampler decodes in bf16. Elsewhere 0.07 was seen of a sound run in FP8
    # (radixark/miles#2722), 0.27 of a faulty one (#1678); objective.tis_cap corrects what is left.
    max_log_prob_gap_fp8: float = 0.1
    min_teacher_influence: float = 1e-3  # share of the gradient that the teacher moves


@dataclass
class TrainerPart:
    """`layout.trainer`: the trainer's nodes, of which there are trainer.num_nodes with trainer.devices ranks each."""

    gpus_per_node: int = 0  # one a rank; 0: ranks on CPUs, or a machine without a scheduler
    cpus_per_task: int = 1  # of a rank; 8 to 16 feed a GPU
    mem_gb: int | None = None  # memory of a node, GB; null: all of it
    port: int = 29500  # where the ranks meet, on the first node
    image: str = "trainer"  # container: the site file says which image trainer, vllm and cpu stand for


@dataclass
class VllmPart:
    """Copies of one model behind vLLM on the GSRM's nodes: copy i listens on port + i."""

    replicas: int = 0  # 0: none is started; the endpoints of gsrm.llm are somebody else's
    tensor_parallel_size: int = 1  # GPUs a copy, all of one node
    port: int = 8000
    weights: str | None = None  # directory, or name on the hub, of what is served
    max_model_len: int = 32768  # tokens of prompt and reply (RLKD's GSRM: 32,768 positions)


@dataclass
class GsrmPart:
    """`layout.gsrm`: nodes that score structure: the GSRM's server (gsrm.server) on the first one, and its models."""

    nodes: int = 0  # 0: no component of its own; the trainer scores by itself, or asks a server that runs elsewhere
    gpus_per_node: int = 0
    cpus_per_task: int = 8
    mem_gb: int | None = None
    image: str = "vllm"
    decomposer: VllmPart = field(default_factory=VllmPart)
    judge: VllmPart = field(default_factory=lambda: VllmPart(port=8100))


@dataclass
class Layout:
    """The job on a cluster: components of one heterogeneous Slurm job. What a site calls its things is not here."""

    time_limit: str = "00:04:00:00"  # DD:HH:MM:SS
    signal_s: int = 600  # SIGUSR1 so long before that end: save, requeue, go on
    trainer: TrainerPart = field(default_factory=TrainerPart)
    gsrm: GsrmPart = field(default_factory=GsrmPart)


@dataclass
class Stage:
    """One supervised stage of the quickstart: its length, learning rate and demonstrations."""

    steps: int = 800
    lr: float = 3e-3
    schedule: str = "constant"
    strategies: list[str] = field(default_factory=lambda: ["post", "random"])
    noise: float = 0.0
    num_paths: int | None = None


@dataclass
class Demo:
    """The quickstart: a base model, then the teacher and the student from it, made in minutes on two cores.

    The student can look letters up but follows another order and carries a systematic error: able, but wrong.
    """

    base: Stage = field(default_factory=Stage)
    teacher: Stage = field(default_factory=lambda: Stage(steps=400, lr=2e-3, schedule="linear", strategies=["post"]))
    student: Stage = field(
        default_factory=lambda: Stage(steps=100, lr=1e-3, strategies=["right", "random"], noise=0.35, num_paths=400)
    )
    student_from: str = "base"  # base or teacher
    min_teacher_accuracy: float = 0.9
    max_teacher_retrains: int = 2  # with a derived seed; then refuse
    retrain_within_s: float = 400.0  # no retraining is begun later than so many seconds after the start
    test_problems: int = 200
    test_samples: int = 8


@dataclass
class GsrmDemo:
    """`examples/demo_gsrm.py`: a tiny GSRM, its training data, and what it must reach."""

    vllm_python: str | None = None  # a Python that has vLLM; null: environment variable RLKD_VLLM_PYTHON
    startup_s: float = 400.0  # for vLLM to be ready; 45 to 80 s on two idle cores
    num_rows: int = 10_000  # to train on
    held_out_rows: int = 300  # to measure on, of other problems
    altered: float = (
        0.4  # share of training texts with steps that make no sense together, as students in training write
    )
    cut: float = 0.05  # share of training texts that break off
    train_config: str = "gsrm_tiny"  # config of examples/train_gsrm.py
    training: list[str] = field(default_factory=list)  # overrides of it
    min_parse_rate: float = 0.95
    min_step_f1: float = 0.9
    min_agreement: float = 0.95  # share of the run's rollouts with the same reward as by rule


@dataclass
class ExpressionsTask:
    """Nested integer expressions modulo m, one letter an operator."""

    modulus: int = 5
    num_teacher_paths: int = 1  # strategies in the reference, the teacher's own first
    style: str = "letters"  # letters: `c:2*3=1;` a step; prose: the same steps as sentences in several phrasings


@dataclass
class PromptsTask:
    """JSON lines with problem, answer and teacher paths; split by content hash."""

    path: str = ""
    problem_key: str = "problem"
    answer_key: str = "answer"
    teacher_path_key: str = "teacher_path"
    validation_fraction: float = 0.1
    test_fraction: float = 0.1


@dataclass
class KnightsAndKnavesTask:
    """Puzzles with one solution; data.train_difficulty and validation_difficulty are numbers of people, 2 to 8."""

    num_teacher_paths: int = 1  # worked paths a puzzle, each beginning with another person where one has to suppose
    chat_template: str | None = None  # directory whose chat template wraps the question; null: plain text


@dataclass
class MathTask:
    """Mathematics from public files: JSON lines or one JSON list (tasks/math.py lists the layouts)."""

    path: str = ""
    validation_path: str | None = None  # file of its own; null: validation_fraction of `path`
    test_path: str | None = None
    layout: str = "auto"  # of all files: gsm8k, math, answer, openr1, verl; auto: each by the keys of its first row
    validation_fraction: float = 0.02  # by content hash; not read where that split has a file of its own
    test_fraction: float = 0.02
    num_teacher_paths: int = 1  # most references a problem that are kept, verified ones first
    chat_template: str | None = None  # directory whose chat template wraps the problem; null: plain text
    verify_s: float = 5.0  # for math-verify on one answer, which counts as wrong after that


@dataclass
class Convert:
    """`examples/convert_checkpoint.py`: a Hugging Face directory to a checkpoint, or the other way round."""

    source: str | None = None
    target: str | None = None
    family: str | None = None  # to Hugging Face: a name of engine/model/families; null: the plainest that fits


TASKS: dict[str, type] = {
    "expressions": ExpressionsTask,
    "knights_and_knaves": KnightsAndKnavesTask,
    "math": MathTask,
    "prompts": PromptsTask,
}


@dataclass
class Config:
    """The whole tree. `objective` and `task` are typed by their `name` (load.py)."""

    name: str = "rlkd"
    trainer: Trainer = field(default_factory=Trainer)
    exp_manager: ExpManager = field(default_factory=ExpManager)
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    task: Any = None
    objective: Any = None
    rlkd: Rlkd = field(default_factory=Rlkd)
    reward: Reward = field(default_factory=Reward)
    gsrm: Gsrm = field(default_factory=Gsrm)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    validation: Validation = field(default_factory=Validation)
    gate: Gate = field(default_factory=Gate)
    layout: Layout = field(default_factory=Layout)
    demo: Demo = field(default_factory=Demo)
    gsrm_demo: GsrmDemo = field(default_factory=GsrmDemo)
    convert: Convert = field(default_factory=Convert)
