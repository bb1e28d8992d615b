"""Bad requests, each with the status and a phrase of the answer, and where the two servers differ on purpose.

The answers are those of Triton Inference Server 2.51 (24.10). Used by test_bad_requests.py and test_fuzz.py."""

from __future__ import annotations

import struct
from collections.abc import Callable

from tests.backend.serving.infer_messages import Request, fail_request, number, request, set_parameter, strings, text

INVALID, NOT_FOUND, INTERNAL, UNIMPLEMENTED = "INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL", "UNIMPLEMENTED"


def _echo(*tensors, bend: Callable[[Request], object] | None = None, **parameters) -> Request:
    message = request("echo", *(tensors or (text(b"a"),)), **parameters)
    if bend is not None:
        bend(message)
    return message


def _batched(*tensors) -> Request:
    return request("batched", *tensors)


def _typed(**contents) -> Request:
    """TEXT [1] with typed contents."""
    message = Request(model_name="echo")
    tensor = message.inputs.add(name="TEXT", datatype="BYTES", shape=[1])
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    return message


def _both() -> Request:
    message = _typed(bytes_contents=[b"a"])
    message.raw_input_contents.append(strings(b"a"))
    return message


def _uint64(key: str) -> Callable[[Request], None]:
    def bend(message: Request) -> None:
        message.parameters[key].uint64_param = 5

    return bend


def _typed_batched(**contents) -> Request:
    """IDS [1,1] and SMALL [1,2,1], both with typed contents."""
    message = Request(model_name="batched")
    message.inputs.add(name="IDS", datatype="UINT32", shape=[1, 1]).contents.uint_contents.append(1)
    small = message.inputs.add(name="SMALL", datatype="INT8", shape=[1, 2, 1])
    for field, values in contents.items():
        getattr(small.contents, field).extend(values)
    return message


def _in_shared_memory(message: Request) -> None:
    message.raw_input_contents.pop()
    message.inputs[0].parameters["shared_memory_region"].string_param = "mine"
    message.inputs[0].parameters["shared_memory_byte_size"].int64_param = 4


def _set_output_parameter(message: Request, key: str, value: int) -> None:
    message.outputs.add(name="TEXT").parameters[key].int64_param = value


IDS = ("IDS", "UINT32", [1, 1], b"\x01\0\0\0")

# name → (request, status, phrase of the message); None: the request is good.
CASES: dict[str, tuple[Request, str | None, str]] = {
    "unknown model": (request("nope"), NOT_FOUND, "Request for unknown model: 'nope' is not found"),
    "empty model name": (request(""), NOT_FOUND, "Request for unknown model: '' is not found"),
    "unknown version": (_echo(bend=lambda m: setattr(m, "model_version", "7")), NOT_FOUND,
                        "Request for unknown model: 'echo' version 7 is not found"),
    "version that is no number": (_echo(bend=lambda m: setattr(m, "model_version", "x")), INVALID,
                                  "failed to get model version from specified version string 'x'"),
    "no input": (request("echo"), INVALID, "expected number of inputs between 1 and 3 but got 0 inputs for model "
                 "'echo'. Got input(s) [], but missing required input(s) ['TEXT']"),
    "no input, with an id": (request("echo", request_id="abc"), INVALID, "[request id: abc] expected number of inputs"),
    "no input of a model with one": (request("fail"), INVALID, "but missing required input(s) ['ERROR']"),
    "only an optional input": (_echo(number()), INVALID, "missing required input(s) ['TEXT']"),
    "unexpected input": (_echo(text(b"a"), ("BOGUS", "INT32", [1], b"\0\0\0\0")), INVALID,
                         "unexpected inference input 'BOGUS' for model 'echo'"),
    "duplicate input": (_echo(text(b"a"), text(b"a")), INVALID, "input 'TEXT' already exists in request"),
    "wrong datatype": (_echo(("TEXT", "INT32", [1], b"\0\0\0\0")), INVALID,
                       "inference input 'TEXT' data-type is 'INT32', but model 'echo' expects 'BYTES'"),
    "wrong datatype of an optional input": (_echo(text(b"a"), ("N", "FP32", [1], b"\0\0\0\0")), INVALID,
                                            "input 'N' data-type is 'FP32', but model 'echo' expects 'INT32'"),
    "unknown datatype": (_echo(("TEXT", "WORDS", [1], strings(b"a"))), INVALID, "data-type is '<invalid>'"),
    "datatype as in config.pbtxt": (_echo(("TEXT", "TYPE_STRING", [1], strings(b"a"))), INVALID,
                                    "data-type is '<invalid>'"),
    "no datatype": (_echo(("TEXT", "", [1], strings(b"a"))), INVALID, "data-type is '<invalid>'"),
    "wrong size": (_echo(text(b"a"), ("N", "INT32", [2], b"\0" * 8)), INVALID,
                   "unexpected shape for input 'N' for model 'echo'. Expected [1], got [2]"),
    "too many axes": (_echo(text(b"a"), ("N", "INT32", [1, 1], b"\0" * 4)), INVALID, "Expected [1], got [1,1]"),
    "no axis": (_echo(text(b"a"), ("N", "INT32", [], b"\0" * 4)), INVALID, "Expected [1], got []"),
    "negative size": (_echo(("TEXT", "BYTES", [-1], strings(b"a"))), INVALID,
                      "All input dimensions should be specified for input 'TEXT' for model 'echo', got [-1]"),
    "numbers too short": (_echo(text(b"a"), ("N", "INT32", [1], b"\0\0")), INVALID,
                          "input byte size mismatch for input 'N' for model 'echo'. Expected 4, got 2"),
    "numbers too long": (_echo(text(b"a"), ("N", "INT32", [1], b"\0" * 8)), INVALID, "Expected 4, got 8"),
    "fewer strings than the shape": (_echo(("TEXT", "BYTES", [2], strings(b"a"))), INVALID,
                                     "expected 2 string elements for inference input 'TEXT' for model 'echo', got 1"),
    "more strings than the shape": (_echo(("TEXT", "BYTES", [1], strings(b"a", b"b"))), INVALID,
                                    "unexpected number of string elements 2 for inference input 'TEXT' for model "
                                    "'echo', expecting 1"),
    "string longer than the data": (_echo(("TEXT", "BYTES", [1], struct.pack("<I", 100) + b"a")), INVALID,
                                    "incomplete string data for inference input 'TEXT'"),
    "string of 4 GiB": (_echo(("TEXT", "BYTES", [1], b"\xff\xff\xff\xffa")), INVALID, "incomplete string data"),
    "half a length": (_echo(("TEXT", "BYTES", [1], b"\0\0")), INVALID,
                      "incomplete string length indicator for inference input 'TEXT' for model 'echo', expecting 4 "
                      "bytes but only 2 bytes available"),
    "bytes behind the last string": (_echo(("TEXT", "BYTES", [2], strings(b"a") + b"\0")), INVALID,
                                     "expecting 4 bytes but only 1 bytes available"),
    "unknown output": (_echo(bend=lambda m: m.outputs.add(name="NOPE")), INVALID,
                       "unexpected inference output 'NOPE' for model 'echo'"),
    "duplicate output": (_echo(bend=lambda m: [m.outputs.add(name="TEXT") for _ in range(2)]), None, ""),
    "fewer contents than inputs": (_echo(text(b"a"), number(), bend=lambda m: m.raw_input_contents.pop()), INVALID,
                                   "unable to find data for input tensor 'N' for model 'echo' in request"),
    "more contents than inputs": (_echo(bend=lambda m: m.raw_input_contents.append(b"x")), None, ""),
    "raw and typed contents": (_both(), INVALID, "contents field must not be specified when using raw_input_contents"),
    "typed contents of another type": (_typed(int_contents=[1]), INVALID,
                                       "unexpected explicit tensor data for input tensor 'TEXT' for model 'echo' of "
                                       "type 'INT32', expected datatype 'BYTES'"),
    "more typed contents than the shape": (_typed(bytes_contents=[b"a", b"b"]), INVALID,
                                           "unexpected number of string elements 2"),
    "no contents": (_typed(), INVALID, "unable to find data for input tensor 'TEXT' for model 'echo' in request"),
    "typed contents": (_typed(bytes_contents=[b"a"]), None, ""),
    "decoupled model": (request("decoupled"), UNIMPLEMENTED,
                        "ModelInfer RPC doesn't support models with decoupled transaction policy"),
    "no batch axis": (_batched(("IDS", "UINT32", [1], b"\x01\0\0\0")), INVALID, "unexpected shape for input 'IDS' for "
                      "model 'batched'. Expected [-1,-1], got [1]"),
    "no axis where a batch is needed": (_batched(("IDS", "UINT32", [], b"")), INVALID,
                                        "input 'IDS' has no shape but model requires batch dimension for 'batched'"),
    "batch of two": (_batched(("IDS", "UINT32", [2, 1], b"\0" * 8)), INVALID,
                     "inference request batch-size must be <= 1 for 'batched'"),
    "batches that differ": (_batched(IDS, ("IS_SET", "BOOL", [2, 1], b"\0\0")), INVALID, "batch size does not match"),
    "scalar with the model's shape": (_batched(IDS, ("SEED", "UINT64", [1], b"\0" * 8)), INVALID,
                                      "shape for input 'SEED' for model 'batched'. Expected [-1,1], got [1]"),
    "more elements than fit in memory": (_batched(("IDS", "UINT32", [1, 2**62], b"\0" * 4)), INVALID, "IDS"),
    "sequence_id as a string": (_echo(sequence_id="me"), None, ""),
    "sequence_id as a number": (_echo(sequence_id=7), None, ""),
    "sequence_id as a boolean": (_echo(sequence_id=True), INVALID, "invalid value type for 'sequence_id' parameter, "
                                 "expected int64_param or string_param"),
    "sequence_id as an unsigned number": (_echo(bend=_uint64("sequence_id")), INVALID, "'sequence_id' parameter"),
    "sequence_id too long": (_echo(sequence_id="x" * 129), UNIMPLEMENTED,
                             "string correlation ID cannot be longer than 128 characters"),
    "sequence_start as a number": (_echo(sequence_start=1), INVALID,
                                   "invalid value type for 'sequence_start' parameter, expected bool_param"),
    "sequence_end as a string": (_echo(sequence_end="yes"), INVALID, "'sequence_end' parameter, expected bool_param"),
    "priority as a string": (_echo(priority="high"), INVALID,
                             "invalid value type for 'priority' parameter, expected int64_param or uint64_param"),
    "negative priority": (_echo(priority=-1), INVALID, "invalid value for 'priority', expected value >= 0"),
    "timeout as a string": (_echo(timeout="soon"), INVALID,
                            "invalid value type for 'timeout' parameter, expected int64_param"),
    "timeout as an unsigned number": (_echo(bend=_uint64("timeout")), INVALID, "'timeout' parameter"),
    "negative timeout": (_echo(timeout=-5), None, ""),
    "parameters of one's own": (_echo(a="x", b=1, c=True, d=0.5, headers="h", binary_data_output=True), None, ""),
    "unsigned parameter": (_echo(bend=_uint64("a")), INVALID, "invalid value type for 'a' parameter, expected "
                           "int64_param, bool_param, or string_param"),
    "parameter without a value": (_echo(bend=lambda m: m.parameters["a"].SetInParent()), INVALID, "'a' parameter"),
    "reserved parameter": (_echo(triton_x=1), INVALID,
                           "parameter keys starting with 'triton_' are reserved for Triton usage"),
    "empty final response as a string": (
        _echo(bend=lambda m: set_parameter(m, "triton_enable_empty_final_response", "yes")), INVALID,
        "invalid value type for 'triton_enable_empty_final_response' parameter, expected bool_param"),
    "empty batch": (_batched(("IDS", "UINT32", [0, 1], b"")), INVALID, "batch-size must be >= 1"),
    "negative batch": (_batched(("IDS", "UINT32", [-1, 1], b"\0" * 4)), INVALID,
                       "All input dimensions should be specified for input 'IDS'"),
    "version 0": (_echo(bend=lambda m: setattr(m, "model_version", "0")), NOT_FOUND, "version 0 is not found"),
    "negative version": (_echo(bend=lambda m: setattr(m, "model_version", "-1")), INVALID,
                         "invalid model version specified '-1' , version should be an integral value > 0"),
    "version beyond 64 bits": (_echo(bend=lambda m: setattr(m, "model_version", "9" * 30)), INVALID, "version string"),
    "number that its type has not": (_typed_batched(int_contents=[300, 0]), INVALID,
                                     "does not fit INT8; use -128 to 127"),
    "fewer typed numbers than the shape": (_typed_batched(int_contents=[1]), INVALID,
                                           "byte size mismatch for input 'SMALL' for model 'batched'. Expected 2"),
    "classification": (_echo(bend=lambda m: _set_output_parameter(m, "classification", 1)), UNIMPLEMENTED,
                       "classification of output 'TEXT' is not supported"),
    "input in shared memory": (_echo(bend=_in_shared_memory), UNIMPLEMENTED, "shared memory"),
    "RequestError": (fail_request("RequestError"), INVALID, "a RequestError on purpose"),
    "SessionError": (fail_request("SessionError"), INVALID, "a SessionError on purpose"),
    "CapacityError": (fail_request("CapacityError"), "RESOURCE_EXHAUSTED", "a CapacityError on purpose"),
    "DeadlineError": (fail_request("DeadlineError"), "DEADLINE_EXCEEDED", "a DeadlineError on purpose"),
    "EngineDeadError": (fail_request("EngineDeadError"), "UNAVAILABLE", "a EngineDeadError on purpose"),
    "exception in the model": (fail_request("bug"), INTERNAL,
                               "ZeroDivisionError: a bug on purpose"),
}

# Where the real server answers otherwise, and why we do not follow: name → (status, phrase, reason). A status of None
# means that it takes the request; CRASH that the whole server ends, so that the request is not sent to it.
CRASH = "CRASH"
DIFFERENCES: dict[str, tuple[str | None, str, str]] = {
    "empty batch": (INVALID, "input byte size mismatch", "its reason is about bytes, though the bytes are right"),
    "negative batch": (INVALID, "Expected 17179869180, got 4", "it computes a size from the negative number"),
    "number that its type has not": (None, "", "it cuts the number to its lowest bits, so the model gets another one"),
    "classification": (CRASH, "", "asked for the classes of a text, it ends; one request must not end all others"),
    "input in shared memory": (NOT_FOUND, "Unable to find shared memory region: 'mine'",
                               "we have no shared memory to look in, and say so"),
    "CapacityError": ("UNAVAILABLE", "a CapacityError on purpose", "its models cannot say RESOURCE_EXHAUSTED"),
    "DeadlineError": ("CANCELLED", "a DeadlineError on purpose", "its models cannot say DEADLINE_EXCEEDED"),
}
