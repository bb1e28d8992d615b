"""Bad requests: both servers answer each with the same status and the same words, but for a table of differences."""

from __future__ import annotations

import grpc
import pytest

from tests.backend.serving.bad_requests import CASES, CRASH, DIFFERENCES
from tests.backend.serving.infer_messages import request, text

ANSWER_TIMEOUT_S = 10.0


def expected(case: str, server_name: str) -> tuple[str | None, str]:
    """(status, phrase) of a server's answer."""
    _, status, phrase = CASES[case]
    if server_name == "triton" and case in DIFFERENCES:
        status, phrase, reason = DIFFERENCES[case]
        if status == CRASH:
            pytest.skip(f"ends the real server: {reason}")
    return status, phrase


@pytest.mark.parametrize("case", CASES)
def test_a_bad_request_gets_a_precise_status_and_harms_nobody(stub, server_name, case):
    message = CASES[case][0]
    status, phrase = expected(case, server_name)
    if status is None:
        assert stub.ModelInfer(message, timeout=ANSWER_TIMEOUT_S).model_name == message.model_name
        return
    with pytest.raises(grpc.RpcError) as failure:
        stub.ModelInfer(message, timeout=ANSWER_TIMEOUT_S)
    assert failure.value.code().name == status, failure.value.details()
    assert phrase in failure.value.details()
    assert stub.ModelInfer(request("echo", text(b"still here")), timeout=ANSWER_TIMEOUT_S).raw_output_contents


@pytest.mark.parametrize("case", [case for case, (message, status, _) in CASES.items()
                                  if status and message.model_name not in ("decoupled", "fail")])
def test_on_a_stream_it_is_a_message_and_the_next_request_is_answered(stub, server_name, case):
    message = CASES[case][0]
    status, phrase = expected(case, server_name)
    good = request("echo", text(b"still here"), request_id="good")
    first, second = stub.ModelStreamInfer(iter([message, good]), timeout=ANSWER_TIMEOUT_S)
    assert bool(first.error_message) == (status is not None) and phrase in first.error_message
    assert (first.infer_response.id, second.infer_response.id) == (message.id, "good")
    assert not second.error_message
