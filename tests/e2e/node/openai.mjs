// OpenAI's own package for Node, as an application uses it.

import OpenAI from "openai";

const messages = [{ role: "user", content: "Say hi" }];
const tools = [
  {
    type: "function",
    function: { name: "get_weather", parameters: { type: "object", properties: { city: { type: "string" } } } },
  },
];

const clientOf = ({ baseURL, apiKey }, more = {}) => new OpenAI({ baseURL, apiKey, maxRetries: 0, ...more });

export async function chat(target) {
  const answer = await clientOf(target).chat.completions.create({ model: target.model, messages });
  const [choice] = answer.choices;
  return {
    text: choice.message.content,
    finish: choice.finish_reason,
    model: answer.model,
    usage: answer.usage,
    requestId: answer._request_id,
  };
}

export async function stream(target) {
  const chunks = [];
  const events = await clientOf(target).chat.completions.create({ model: target.model, messages, stream: true });
  for await (const chunk of events) chunks.push(chunk);
  return {
    text: chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join(""),
    finish: chunks.at(-1).choices[0].finish_reason,
    models: [...new Set(chunks.map((chunk) => chunk.model))],
    emptyChoices: chunks.filter((chunk) => chunk.choices.length === 0).length,
  };
}

export async function tools_stream(target) {
  const runner = clientOf(target).chat.completions.stream({ model: target.model, messages, tools });
  const message = await runner.finalMessage();
  return { calls: message.tool_calls.map((call) => call.function) };
}

export async function embeddings(target) {
  const answer = await clientOf(target).embeddings.create({ model: target.model, input: ["a", "b"] });
  return { vectors: answer.data.map((row) => row.embedding) };
}

export async function models(target) {
  const ids = [];
  for await (const model of clientOf(target).models.list()) ids.push(model.id);
  return { ids, one: (await clientOf(target).models.retrieve(target.model)).id };
}

export async function responses(target) {
  const client = clientOf(target);
  const whole = await client.responses.create({ model: target.model, input: "Say hi" });
  let streamed = "";
  for await (const event of await client.responses.create({ model: target.model, input: "Say hi", stream: true })) {
    if (event.type === "response.output_text.delta") streamed += event.delta;
  }
  return { text: whole.output_text, streamed, model: whole.model };
}

export async function error(target) {
  try {
    await chat(target);
  } catch (caught) {
    const { status, code, param, type, message, requestID } = caught;
    return { name: caught.constructor.name, status, code, param, type, message, requestID };
  }
  return { name: null };
}

export async function broken_stream(target) {
  try {
    await stream(target);
  } catch (caught) {
    return { name: caught.constructor.name, message: caught.message };
  }
  return { name: null };
}

export async function stop(target) {
  const events = await clientOf(target).chat.completions.create({ model: target.model, messages, stream: true });
  for await (const chunk of events) if (chunk.choices[0].delta.content) break; // the SDK aborts the request
  return { stopped: true };
}

// With the retries that the package makes by itself
export async function patience({ baseURL, apiKey, model }) {
  const client = new OpenAI({ baseURL, apiKey });
  const began = performance.now();
  const { choices } = await client.chat.completions.create({ model, messages: [{ role: "user", content: "Say hi" }] });
  return { text: choices[0].message.content, waitedMs: Math.round(performance.now() - began) };
}

export async function no_patience({ baseURL, apiKey, model }) {
  const client = new OpenAI({ baseURL, apiKey });
  const began = performance.now();
  try {
    await client.chat.completions.create({ model, messages: [{ role: "user", content: "Say hi" }] });
  } catch (caught) {
    return { name: caught.constructor.name, code: caught.code, waitedMs: Math.round(performance.now() - began) };
  }
  return { name: null };
}
