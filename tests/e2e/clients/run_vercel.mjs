// The Vercel AI SDK with its OpenAI provider. Modes: `whole` and `stream` with the default settings,
// where requests from the second on name earlier items by `item_reference`; `unstored` with `store`
// false.

import { createOpenAI } from "@ai-sdk/openai";
import { generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";
import { parameters, perform } from "./task.mjs";

/** What one call of the SDK ends with: the text, and the messages that it adds to the history. */
async function streamed(settings) {
  let failure;
  const result = streamText({ ...settings, onError: ({ error }) => (failure = error) });
  await result.consumeStream();
  if (failure) throw failure;
  return { text: await result.text, response: await result.response };
}

async function run(task) {
  const openai = createOpenAI({ baseURL: task.base_url, apiKey: task.key });
  const answer = task.mode === "stream" ? streamed : generateText;
  const messages = [];
  const texts = [];
  for (const content of task.prompts) {
    messages.push({ role: "user", content });
    const { text, response } = await answer({
      model: openai(task.model),
      messages,
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
    });
    messages.push(...response.messages);
    texts.push(text);
  }
  return texts;
}

await perform(run);
