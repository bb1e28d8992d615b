#!/usr/bin/env bash
# The API from a shell: the model's name, an answer, the same as a stream.
set -euo pipefail

url=${OPENAI_BASE_URL:-http://127.0.0.1:23333/v1}
curl=(curl --silent --show-error --fail-with-body --header "Authorization: Bearer ${OPENAI_API_KEY:-none}"
      --header "Content-Type: application/json")

model=$("${curl[@]}" "$url/models" | sed 's/.*"data":\[{"id":"\([^"]*\)".*/\1/')
echo "model: $model"

"${curl[@]}" "$url/chat/completions" --data @- <<JSON
{"model": "$model", "temperature": 0, "messages": [{"role": "user", "content": "What is seven plus twelve?"}]}
JSON
echo

"${curl[@]}" --no-buffer "$url/chat/completions" --data @- <<JSON
{"model": "$model", "temperature": 0, "stream": true, "stream_options": {"include_usage": true},
 "messages": [{"role": "user", "content": "What is seven plus twelve?"}]}
JSON
