"""Extensions of Schemathesis: bodies of lines, and lists whose items have errors of their own."""

import json

import schemathesis

LINES = "application/x-ndjson"


@schemathesis.serializer(LINES)
def as_lines(context, value):
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()


@schemathesis.deserializer(LINES)
def from_lines(context, response):
    return response.content.decode()


@schemathesis.hook
def filter_case(context, case):
    """Leaves out lists and lines with wrong items: each has an error in its place, and the answer status 200."""
    is_several = isinstance(case.body, list) or case.media_type == LINES
    negative = case.meta is not None and case.meta.generation.mode.is_negative
    return not (is_several and negative and case.operation.path in ("/v1/rewards", "/v1/render"))
