"""What messages mean that come without a code: of services, and of what stands before them."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol import error_messages

OF_THE_REQUEST = [
    "Conversation with id 'conv_1' not found.",
    "Prompt with id 'pmpt_1' not found.",
    "Prompt version 3 does not exist",
    "No such File object: file-1",
    "File 'file-1' not found",
    "No file found with id 'file-1'",
    "Project `p` does not have access to file file-1",
    "Vector store with id 'vs_1' not found.",
    "You do not have access to this vector store",
    "Container is expired.",
    "Container with id 'cntr_1' not found.",
    "The conversation is locked",
    "Connector 'x' does not exist",
    "Item with id 'rs_1' not found. Items are not persisted when `store` is set to false",
    "Widget with id 'w' not found",
    "Unknown tool: search",
    "Tool 'web_search' not found",
    "Invalid schema for function 'look_up': 'x' is not valid.",
    "bad tool schema",
    "Invalid value: 'nothing'. Supported values are: 'auto'.",
    "Unsupported parameter: 'temperature' is not supported with this model.",
    "Missing required parameter: 'input'",
    "1 validation error for ResponsesRequest",
    "Failed to download image from https://pictures.test/1.png",
    "Error while downloading file https://papers.test/1.pdf",
    "max context is 4096 tokens",
    "The provider said: context_length_exceeded",
    "Your input exceeds the context window of this model.",
    "This model's maximum context length is 4096 tokens, your messages have 5000.",
    "litellm.BadRequestError: OpenAIException - Invalid value: 'x'",
    "litellm.ContextWindowExceededError: litellm.BadRequestError: the prompt is too long",
    "No endpoints found that support tool use.",
]

OF_A_MODEL = {
    "The model `o9` does not exist": "o9",
    "The requested model 'o9' does not exist.": "o9",
    "The model `o9` does not exist or you do not have access to it.": "o9",
    "The model o9 does not exist or your team t does not have access to it.": "o9",
    "The 'o9' model is not supported when using Codex with a ChatGPT account.": "o9",
    'model "o9" not found, try pulling it first': "o9",
    "litellm.NotFoundError: OpenAIException - The model `o9` does not exist": "o9",
    "Model with id o9 not found": "o9",
    "Model not found": None,
    "Model Not Exist": None,
    "Invalid model name passed in model=o9. Call `/v1/models` to see others.": "o9",
    "openai/o9 is not a valid model ID": "openai/o9",
    "No endpoints found for openai/o9.": "openai/o9",
    "Project `p` does not have access to model `o9`": "o9",
    "The API deployment for this resource does not exist.": None,
    "The responses operation does not work with the specified model, o9.": None,
    "Unknown model: o9": "o9",
    "The model `o9` has been decommissioned and is no longer supported.": "o9",
}

OF_THE_SERVICE = [
    "Our servers are currently overloaded. Please try again later.",
    "Overloaded",
    "The engine is currently overloaded, please try again later",
    "That model is currently overloaded with other requests.",
    "Selected model is at capacity. Please try a different model.",
    "litellm.ServiceUnavailableError: The server is busy",
]

OF_MONEY = [
    "You exceeded your current quota, please check your plan and billing details.",
    "Your credit balance is too low to access the API",
    "Insufficient credits",
    "Billing hard limit has been reached",
    "The usage limit has been reached",
    "You've hit your usage limit.",
]

OF_CREDENTIALS = [
    "Incorrect API key provided: x",
    "API key not valid. Please pass a valid API key.",
    "Your account is deactivated.",
    "Your organization has been disabled",
]

OF_NOBODY = [
    "Invalid URL (POST /v1/responses)",
    "Not Found",
    "Resource not found",
    "Response with id 'resp_1' not found.",
    "Previous response with id 'resp_1' not found.",
    "Internal server error",
    "The server had an error while processing your request",
    "forbidden",
    "Missing scopes: api.responses.write",
    "Method Not Allowed",
    "Bad gateway",
    "",
]

READERS = [
    error_messages.about_the_request,
    error_messages.no_such_model,
    error_messages.overloaded,
    error_messages.spent,
    error_messages.bad_credentials,
    error_messages.rate_limited,
]


@pytest.mark.parametrize(
    ("messages", "reader"),
    [
        (OF_THE_REQUEST, error_messages.about_the_request),
        (list(OF_A_MODEL), error_messages.no_such_model),
        (OF_THE_SERVICE, error_messages.overloaded),
        (OF_MONEY, error_messages.spent),
        (OF_CREDENTIALS, error_messages.bad_credentials),
        (["Rate limit reached for requests", "Too many requests"], error_messages.rate_limited),
        (OF_NOBODY, None),
    ],
    ids=["request", "model", "service", "money", "credentials", "rate", "nobody"],
)
def test_a_message_means_one_thing_or_nothing(messages: list[str], reader: object) -> None:
    for message in messages:
        meant = [each.__name__ for each in READERS if each(message)]
        assert meant == ([] if reader is None else [reader.__name__]), message  # type: ignore[attr-defined]


@pytest.mark.parametrize(("message", "model"), OF_A_MODEL.items())
def test_the_model_that_is_refused_is_named(message: str, model: str | None) -> None:
    assert error_messages.named_model(message) == model


@pytest.mark.parametrize("quoted", [*OF_A_MODEL, *OF_THE_SERVICE, *OF_MONEY, *OF_CREDENTIALS])
def test_what_a_message_quotes_means_nothing(quoted: str) -> None:
    message = f"Cannot convert the text '{quoted}' to a number"
    assert not any(each(message) for each in READERS)


PIECES = st.sampled_from([*"aA -:.'`_", "error", "model ", "exception", "with id ", "not found"])


@given(st.lists(PIECES).map("".join) | st.text())
def test_any_message_is_read(message: str) -> None:
    for each in READERS:
        each(message)


@pytest.mark.parametrize(
    "part", ["error: ", " ", ": -", "item ", "the model ", "a.", "a", "with id ", "invalid ", "'"]
)
def test_no_message_takes_long(part: str) -> None:
    began = time.process_time()
    for each in READERS:
        each(part * 20_000)
        each(f"model {part * 20_000}")
    assert time.process_time() - began < 1.0
