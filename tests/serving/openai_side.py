"""The stock client, in the environment that has it: `openai_side.py URL MODEL`, messages as JSON on stdin; the reply,
whole and streamed, as JSON on stdout."""

import json
import sys

from openai import OpenAI

client = OpenAI(base_url=sys.argv[1], api_key="none", timeout=60, max_retries=0)
asked = {"model": sys.argv[2], "messages": json.load(sys.stdin), "max_tokens": 200, "temperature": 0}
whole = client.chat.completions.create(**asked)
stream = client.chat.completions.create(**asked, stream=True)
pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
models = [model.id for model in client.models.list()]
text, finish = whole.choices[0].message.content, whole.choices[0].finish_reason
print(json.dumps({"text": text, "finish": finish, "streamed": "".join(pieces), "models": models}))
