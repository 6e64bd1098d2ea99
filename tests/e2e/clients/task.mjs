// What the programs of clients for Node share: their task, the tool, and what they print.

export const parameters = {
  type: "object",
  properties: { number: { type: "integer" } },
  required: ["number"],
  additionalProperties: false,
};

/**
 * Run the task in each of its modes; print a line each, for the test to read.
 *
 * `run` holds the conversation, and returns what the model answered to each prompt.
 */
export async function perform(run) {
  const { models, ...given } = JSON.parse(process.env.E2E_TASK);
  for (const [mode, model] of Object.entries(models)) {
    const ran = [];
    const recordRound = ({ number }) => {
      ran.push(number);
      return `round-${number} ran`;
    };
    let outcome;
    try {
      outcome = { texts: await run({ ...given, mode, model, recordRound }), ran };
    } catch (error) {
      outcome = { error: String(error.stack ?? error), ran };
    }
    console.log(JSON.stringify({ mode, ...outcome }));
  }
}
