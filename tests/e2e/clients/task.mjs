// What the programs of clients for Node share: their task, the tool, and what they print.

export const parameters = {
  type: "object",
  properties: { number: { type: "integer" } },
  required: ["number"],
  additionalProperties: false,
};

/**
 * Run the task in each of its modes, one after the other or `at_once`; print a line each, for the
 * test to read.
 *
 * `run` holds the conversation, and returns what the model answered to each prompt.
 * `events` has addresses by a call of the tool: they are asked for meanwhile, so that something
 * happens to the gateway in the middle of the tool loop.
 */
export async function perform(run) {
  const { models, events = {}, at_once, ...given } = JSON.parse(process.env.E2E_TASK);
  const outcome = async ([mode, model]) => {
    const ran = [];
    const recordRound = async ({ number }) => {
      ran.push(number);
      if (events[number]) await fetch(events[number]);
      return `round-${number} ran`;
    };
    let outcome;
    try {
      outcome = { texts: await run({ ...given, mode, model, recordRound }), ran };
    } catch (error) {
      outcome = { error: String(error.stack ?? error), ran };
    }
    console.log(JSON.stringify({ mode, ...outcome }));
  };
  const tasks = Object.entries(models);
  if (at_once) await Promise.all(tasks.map(outcome));
  else for (const task of tasks) await outcome(task);
}
