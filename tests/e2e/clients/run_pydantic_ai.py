"""pydantic-ai on the Responses API.

Modes: `whole` and `stream` with the whole history in each request, `chained` with
`openai_previous_response_id="auto"`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIResponsesModel, OpenAIResponsesModelSettings
from pydantic_ai.providers.openai import OpenAIProvider
from task import Task, perform


async def run(task: Task) -> list[str]:
    client = AsyncOpenAI(base_url=task.base_url, api_key=task.key, max_retries=0)
    model = OpenAIResponsesModel(task.model, provider=OpenAIProvider(openai_client=client))
    settings = OpenAIResponsesModelSettings()
    if task.mode == "chained":
        settings["openai_previous_response_id"] = "auto"
    agent = Agent(model, tools=[task.record_round], model_settings=settings)
    texts: list[str] = []
    result: Any = None
    for prompt in task.prompts:
        history = result.all_messages() if result else None
        if task.mode == "stream":
            async with agent.run_stream(prompt, message_history=history) as result:
                texts.append(await result.get_output())
        else:
            result = await agent.run(prompt, message_history=history)
            texts.append(result.output)
    return texts


perform(lambda task: asyncio.run(run(task)))
