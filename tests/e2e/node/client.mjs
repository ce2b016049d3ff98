// Runs one scenario and prints what it saw as one line of JSON: node client.mjs LIBRARY SCENARIO
// The gateway comes in SLUICE_URL and SLUICE_KEY, the model in SLUICE_MODEL.

import * as aiSdk from "./ai_sdk.mjs";
import * as openai from "./openai.mjs";

const [library, scenario] = process.argv.slice(2);
const target = {
  baseURL: process.env.SLUICE_URL,
  apiKey: process.env.SLUICE_KEY,
  model: process.env.SLUICE_MODEL,
};

const saw = await { openai, "ai-sdk": aiSdk }[library][scenario](target);
console.log(JSON.stringify(saw));
