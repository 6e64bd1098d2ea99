"""LangChain's ChatOpenAI on the Responses API.

Modes: `whole` and `stream` with the whole history in each request, `chained` with
`use_previous_response_id`.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import SecretStr
from task import Task, perform


def run(task: Task) -> list[str]:
    record = tool(task.record_round)
    model = ChatOpenAI(
        model=task.model,
        base_url=task.base_url,
        api_key=SecretStr(task.key),
        use_responses_api=True,
        use_previous_response_id=task.mode == "chained",
        max_retries=0,
    ).bind_tools([record])
    messages: list[Any] = []
    texts: list[str] = []
    for prompt in task.prompts:
        new: list[Any] = [HumanMessage(prompt)]
        while new:
            messages += new
            answer: Any = answered(model, messages, task.mode == "stream")
            messages.append(answer)
            new = [
                ToolMessage(record.invoke(call["args"]), tool_call_id=call["id"])
                for call in answer.tool_calls
            ]
        texts.append(str(answer.text))
    return texts


def answered(model: Any, messages: list[Any], stream: bool) -> Any:
    if not stream:
        return model.invoke(messages)
    return functools.reduce(operator.add, model.stream(messages))


perform(run)
