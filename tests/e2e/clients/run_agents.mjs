// The OpenAI Agents SDK for Node.
//
// Modes: `whole`, `stream` and `websocket` with the whole history in each request; `chained` with
// `previousResponseId`; `session` with a session that keeps the history; `sealed` with the whole
// history unstored and encrypted.

import { Agent, MemorySession, OpenAIProvider, Runner, tool } from "@openai/agents";
import { WebSocket } from "ws";
import { parameters, perform } from "./task.mjs";

// Node has one of its own since version 22.
globalThis.WebSocket ??= WebSocket;

async function run(task) {
  const modelProvider = new OpenAIProvider({
    apiKey: task.key,
    baseURL: task.base_url,
    useResponses: true,
    useResponsesWebSocket: task.mode === "websocket",
  });
  const runner = new Runner({ modelProvider, tracingDisabled: true });
  const sealed = { store: false, providerData: { include: ["reasoning.encrypted_content"] } };
  const agent = new Agent({
    name: "recorder",
    instructions: "Do as you are asked.",
    model: task.model,
    modelSettings: task.mode === "sealed" ? sealed : {},
    tools: [
      tool({
        name: "record_round",
        description: "Record that a round was run.",
        parameters,
        strict: true,
        execute: task.recordRound,
      }),
    ],
  });
  const session = task.mode === "session" ? new MemorySession() : undefined;
  const stream = ["stream", "websocket"].includes(task.mode);
  const texts = [];
  let result;
  for (const prompt of task.prompts) {
    let said = prompt;
    const options = { session, stream };
    if (task.mode === "chained") options.previousResponseId = result?.lastResponseId;
    else if (result && !session) said = [...result.history, { role: "user", content: prompt }];
    result = await runner.run(agent, said, options);
    if (stream) await result.completed;
    texts.push(result.finalOutput);
  }
  await modelProvider.close();
  return texts;
}

await perform(run);
