"""Our own /openapi.json taken at its word by schemathesis: whatever is sent, no answer is a 5xx or outside it."""

from __future__ import annotations

import pytest

pytest.importorskip("schemathesis")

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from backend.serving.openai.app import build_app

CHECKS = [schemathesis.checks.not_a_server_error, status_code_conformance, content_type_conformance,
          response_schema_conformance]
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "request_output_len")


DOCUMENT = build_app(None).openapi()
OPERATIONS = [result.ok() for result in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations()]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_answers_to_good_requests_are_as_the_schema_says(api, operation):
    limit = limit_of(operation)
    statuses = set()

    def ask(case):
        if isinstance(case.body, dict):
            case.body.pop("timeout", None)  # with a short one 504 is the right answer
            if "model" in case.body:
                case.body["model"] = "internlm2"
            if limit is not None:
                case.body[limit] = 2
            if isinstance(case.body.get("n"), int):
                case.body["n"] = min(case.body["n"], 2)
        response = case.call_and_validate(base_url=api.url, checks=CHECKS, timeout=60)
        statuses.add(response.status_code)

    for max_examples in (20, 200):  # more where the schema says less than the rules do, so that most are refused
        given(operation.as_strategy(generation_mode=GenerationMode.POSITIVE))(
            settings(max_examples=max_examples, suppress_health_check=list(HealthCheck))(ask))()
        if limit is None or 200 in statuses:
            return
    raise AssertionError("only refusals were compared with the schema")


@pytest.mark.parametrize("operation", [operation for operation in OPERATIONS if operation.body or operation.query],
                         ids=lambda operation: operation.label)
def test_bad_requests_are_refused_as_the_schema_says(api, operation):
    @given(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
    @settings(max_examples=30, suppress_health_check=list(HealthCheck))
    def ask(case):
        case.call_and_validate(base_url=api.url, checks=[*CHECKS, negative_data_rejection], timeout=60)

    ask()


def limit_of(operation):
    """The field that says how long an answer may become; None where nothing is generated."""
    body = DOCUMENT["paths"][operation.path][operation.method].get("requestBody")
    if body is None:
        return None
    model = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    return next((name for name in LIMITS if name in DOCUMENT["components"]["schemas"][model]["properties"]), None)
