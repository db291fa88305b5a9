"""Run by the Python that has vLLM: prompt log-probs of some token ids under each model directory, as one line of JSON.

Usage: vllm_side.py IDS DIRECTORY...; IDS are comma-separated.
"""

import json
import sys

from vllm import LLM, SamplingParams
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory


def main(ids, directories):
    out = {}
    for directory in directories:
        llm = LLM(directory, dtype="float32", max_model_len=48, enforce_eager=True, skip_tokenizer_init=True)
        how = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        (answer,) = llm.generate([{"prompt_token_ids": ids}], how)
        rows = answer.prompt_logprobs
        out[directory] = [row[token].logprob for row, token in zip(rows[1:], ids[1:])]
        del llm
        cleanup_dist_env_and_memory()
    print(json.dumps(out))


if __name__ == "__main__":
    main([int(part) for part in sys.argv[1].split(",")], sys.argv[2:])
