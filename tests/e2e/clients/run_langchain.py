"""LangChain's ChatOpenAI on the Responses API.

Modes: `whole` and `stream` with the whole history in each request, `chained` with
`use_previous_response_id`.
"""

from __future__ import annotations

from typing import Any

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import SecretStr
from task import Task, perform


def run(task: Task) -> str:
    record = tool(task.record_round)
    model = ChatOpenAI(
        model=task.model,
        base_url=task.base_url,
        api_key=SecretStr(task.key),
        use_responses_api=True,
        use_previous_response_id=task.mode == "chained",
        max_retries=0,
    ).bind_tools([record])
    messages: list[Any] = [HumanMessage(task.prompt)]
    while True:
        answer: Any
        if task.mode == "stream":
            chunks = list(model.stream(messages))
            answer = chunks[0]
            for chunk in chunks[1:]:
                answer += chunk
        else:
            answer = model.invoke(messages)
        messages.append(answer)
        if not answer.tool_calls:
            return str(answer.text)
        messages += [
            ToolMessage(record.invoke(call["args"]), tool_call_id=call["id"])
            for call in answer.tool_calls
        ]


perform(run)
