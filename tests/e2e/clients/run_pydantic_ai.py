"""pydantic-ai on the Responses API.

Modes: `whole` and `stream` with the whole history in each request, `chained` with
`openai_previous_response_id="auto"`.
"""

from __future__ import annotations

import asyncio

from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIResponsesModel, OpenAIResponsesModelSettings
from pydantic_ai.providers.openai import OpenAIProvider
from task import Task, perform


async def run(task: Task) -> str:
    client = AsyncOpenAI(base_url=task.base_url, api_key=task.key, max_retries=0)
    model = OpenAIResponsesModel(task.model, provider=OpenAIProvider(openai_client=client))
    settings = OpenAIResponsesModelSettings()
    if task.mode == "chained":
        settings["openai_previous_response_id"] = "auto"
    agent = Agent(model, tools=[task.record_round], model_settings=settings)
    if task.mode == "stream":
        async with agent.run_stream(task.prompt) as streamed:
            return str(await streamed.get_output())
    return str((await agent.run(task.prompt)).output)


perform(lambda task: asyncio.run(run(task)))
