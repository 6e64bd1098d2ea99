"""The OpenAI Agents SDK.

Modes: `whole`, `stream` and `websocket` with the whole history in each request, as it does by
itself; `chained` with `auto_previous_response_id`; `session` with a session that keeps the history;
`sealed` with the whole history unstored and encrypted.
"""

from __future__ import annotations

import asyncio
from typing import Any

from agents import Agent, ModelSettings, RunConfig, Runner, SQLiteSession, function_tool
from agents.models.openai_provider import OpenAIProvider
from openai import AsyncOpenAI
from task import Task, perform


async def run(task: Task) -> list[str]:
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
    settings = None
    if task.mode == "sealed":
        settings = ModelSettings(store=False, response_include=["reasoning.encrypted_content"])
    config = RunConfig(model_provider=provider, model_settings=settings, tracing_disabled=True)
    session = SQLiteSession("recorder") if task.mode == "session" else None
    texts: list[str] = []
    result: Any = None
    for prompt in task.prompts:
        said: Any = prompt
        options: dict[str, Any] = {"run_config": config}
        if task.mode == "chained":
            options["auto_previous_response_id"] = True
            options["previous_response_id"] = result and result.last_response_id
        elif session is not None:
            options["session"] = session
        elif result:
            said = [*result.to_input_list(), {"role": "user", "content": prompt}]
        if task.mode in ("stream", "websocket"):
            result = Runner.run_streamed(agent, said, **options)
            async for _ in result.stream_events():
                pass
        else:
            result = await Runner.run(agent, said, **options)
        texts.append(result.final_output)
    await provider.aclose()
    return texts


perform(lambda task: asyncio.run(run(task)))
