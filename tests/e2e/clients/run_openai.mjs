// The OpenAI Node SDK: a tool loop as its documentation writes it.
//
// Modes: `whole`, `stream` or `websocket`, then what the next request brings: `-chained` names the
// response before it, `-full` repeats all items, `-sealed` repeats them unstored and encrypted.

import OpenAI from "openai";
import { ResponsesWS } from "openai/resources/responses/ws";
import { parameters, perform } from "./task.mjs";

const tool = { type: "function", name: "record_round", strict: true, parameters };

/** Ask for one response after the other on one WebSocket. */
function websocket(client) {
  const socket = new ResponsesWS(client, { reconnect: { onReconnecting() {} } });
  const opened = new Promise((resolve) => socket.socket.on("open", resolve));
  let waiting = { resolve() {}, reject() {} };
  socket.on("event", (event) => {
    if (event.type === "response.completed") waiting.resolve(event.response);
    if (["response.failed", "response.incomplete"].includes(event.type)) {
      waiting.reject(new Error(JSON.stringify(event)));
    }
  });
  socket.on("error", (error) => waiting.reject(error));
  return {
    ask: async (request) => {
      await opened;
      return new Promise((resolve, reject) => {
        waiting = { resolve, reject };
        socket.send({ type: "response.create", ...request });
      });
    },
    close: () => socket.close(),
  };
}

const doors = {
  whole: (client) => ({ ask: (request) => client.responses.create(request), close: () => {} }),
  stream: (client) => ({
    ask: (request) => client.responses.stream(request).finalResponse(),
    close: () => {},
  }),
  websocket,
};

async function run(task) {
  const [way, brings] = task.mode.split("-");
  const options =
    brings === "sealed" ? { store: false, include: ["reasoning.encrypted_content"] } : {};
  const client = new OpenAI({ baseURL: task.base_url, apiKey: task.key, maxRetries: 0 });
  const door = doors[way](client);
  const history = [];
  const texts = [];
  let previous = {};
  for (const prompt of task.prompts) {
    let added = [{ role: "user", content: prompt }];
    let response;
    while (added.length > 0) {
      history.push(...added);
      const input = brings === "chained" ? added : history;
      response = await door.ask({
        model: task.model,
        tools: [tool],
        input,
        ...options,
        ...previous,
      });
      if (brings === "chained") previous = { previous_response_id: response.id };
      history.push(...response.output);
      added = [];
      for (const item of response.output.filter((item) => item.type === "function_call")) {
        const output = await task.recordRound(JSON.parse(item.arguments));
        added.push({ type: "function_call_output", call_id: item.call_id, output });
      }
    }
    texts.push(textOf(response));
  }
  door.close();
  return texts;
}

function textOf(response) {
  return response.output
    .filter((item) => item.type === "message")
    .flatMap((item) => item.content.map((part) => part.text))
    .join("");
}

await perform(run);
