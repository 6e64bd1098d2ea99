// The Vercel AI SDK with its OpenAI provider. Modes: `whole` and `stream` with the default settings,
// where requests from the second on name earlier items by `item_reference`; `unstored` with `store`
// false.

import { createOpenAI } from "@ai-sdk/openai";
import { generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";
import { parameters, perform } from "./task.mjs";

async function streamed(settings) {
  let failure;
  const result = streamText({ ...settings, onError: ({ error }) => (failure = error) });
  await result.consumeStream();
  if (failure) throw failure;
  return await result.text;
}

async function run(task) {
  const openai = createOpenAI({ baseURL: task.base_url, apiKey: task.key });
  const settings = {
    model: openai(task.model),
    prompt: task.prompt,
    maxRetries: 0,
    stopWhen: stepCountIs(20),
    providerOptions: task.mode === "unstored" ? { openai: { store: false } } : {},
    tools: {
      record_round: tool({
        description: "Record that a round was run.",
        inputSchema: jsonSchema(parameters),
        execute: task.recordRound,
      }),
    },
  };
  return task.mode === "stream" ? streamed(settings) : (await generateText(settings)).text;
}

await perform(run);
