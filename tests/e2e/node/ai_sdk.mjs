// Vercel's AI SDK with the provider that Chatbox uses, set up as Chatbox does: no usage asked for, no retries here.

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";

const prompt = "Say hi";
const weather = tool({
  description: "The weather in a city",
  inputSchema: jsonSchema({ type: "object", properties: { city: { type: "string" } }, required: ["city"] }),
  execute: async ({ city }) => `sunny in ${city}`,
});

const modelOf = ({ baseURL, apiKey, model }) => createOpenAICompatible({ name: "sluice", baseURL, apiKey })(model);

// streamText reports errors as a part of the stream; its default also writes them to the console
const quiet = { maxRetries: 0, onError: () => {} };

async function partsOf(result) {
  const parts = [];
  for await (const part of result.fullStream) parts.push(part);
  return parts;
}

const textOf = (parts, type) =>
  parts
    .filter((part) => part.type === type)
    .map((part) => part.text)
    .join("");

export async function chat(target) {
  const { text, finishReason, usage, response } = await generateText({ model: modelOf(target), prompt, maxRetries: 0 });
  return { text, finishReason, outputTokens: usage.outputTokens, model: response.modelId };
}

export async function stream(target) {
  const parts = await partsOf(streamText({ model: modelOf(target), prompt, ...quiet }));
  return {
    text: textOf(parts, "text-delta"),
    reasoning: textOf(parts, "reasoning-delta"),
    finishReason: parts.findLast((part) => part.type === "finish")?.finishReason,
    errors: parts.filter((part) => part.type === "error").map((part) => String(part.error?.message ?? part.error)),
  };
}

export async function tools_stream(target) {
  const stopWhen = stepCountIs(2);
  const parts = await partsOf(streamText({ model: modelOf(target), prompt, tools: { get_weather: weather }, stopWhen, ...quiet }));
  return {
    calls: parts.filter((part) => part.type === "tool-call").map(({ toolName, input }) => ({ toolName, input })),
    results: parts.filter((part) => part.type === "tool-result").map((part) => part.output),
    text: textOf(parts, "text-delta"),
    errors: parts.filter((part) => part.type === "error").map((part) => String(part.error?.message ?? part.error)),
  };
}

export async function image(target) {
  const picture = { type: "image", image: new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]), mediaType: "image/png" };
  const content = [{ type: "text", text: "What is this?" }, picture];
  try {
    const { text } = await generateText({ model: modelOf(target), messages: [{ role: "user", content }], maxRetries: 0 });
    return { text };
  } catch (caught) {
    return said(caught);
  }
}

export async function error(target) {
  try {
    await generateText({ model: modelOf(target), prompt, maxRetries: 0 });
  } catch (caught) {
    return said(caught);
  }
  return { name: null };
}

export async function error_of_a_stream(target) {
  const parts = await partsOf(streamText({ model: modelOf(target), prompt, ...quiet }));
  const failed = parts.find((part) => part.type === "error");
  return failed ? said(failed.error) : { name: null };
}

export async function responses(target) {
  const model = createOpenAI({ baseURL: target.baseURL, apiKey: target.apiKey }).responses(target.model);
  const parts = await partsOf(streamText({ model, prompt, providerOptions: { openai: { store: false } }, ...quiet }));
  return {
    text: textOf(parts, "text-delta"),
    errors: parts.filter((part) => part.type === "error").map((part) => String(part.error?.message ?? part.error)),
  };
}

export async function stop(target) {
  const abort = new AbortController();
  const result = streamText({ model: modelOf(target), prompt, abortSignal: abort.signal, ...quiet });
  for await (const part of result.fullStream) if (part.type === "text-delta") abort.abort();
  return { stopped: true };
}

const said = (caught) => ({
  name: caught.name,
  status: caught.statusCode,
  message: caught.message,
  body: caught.responseBody,
  isRetryable: caught.isRetryable,
});
