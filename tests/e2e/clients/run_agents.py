"""The OpenAI Agents SDK.

Modes: `whole`, `stream` and `websocket` with the whole history in each request, as it does by
itself; `chained` with `auto_previous_response_id`.
"""

from __future__ import annotations

import asyncio

from agents import Agent, RunConfig, Runner, function_tool
from agents.models.openai_provider import OpenAIProvider
from openai import AsyncOpenAI
from task import Task, perform


async def run(task: Task) -> str:
    provider = OpenAIProvider(
        openai_client=AsyncOpenAI(base_url=task.base_url, api_key=task.key, max_retries=0),
        use_responses=True,
        use_responses_websocket=task.mode == "websocket",
    )
    agent = Agent(
        name="recorder",
        instructions="Do as you are asked.",
        model=task.model,
        tools=[function_tool(task.record_round)],
    )
    config = RunConfig(model_provider=provider, tracing_disabled=True)
    if task.mode in ("stream", "websocket"):
        streamed = Runner.run_streamed(agent, task.prompt, run_config=config)
        async for _ in streamed.stream_events():
            pass
        output = streamed.final_output
    else:
        result = await Runner.run(
            agent,
            task.prompt,
            run_config=config,
            auto_previous_response_id=task.mode == "chained",
        )
        output = result.final_output
    await provider.aclose()
    return str(output)


perform(lambda task: asyncio.run(run(task)))
