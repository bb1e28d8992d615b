// OpenAI's client for Node: one answer at once, a second turn as it grows, and what a refused request looks like.

import OpenAI from "openai";

const client = new OpenAI({
  baseURL: process.env.OPENAI_BASE_URL ?? "http://127.0.0.1:23333/v1",
  apiKey: process.env.OPENAI_API_KEY ?? "none",
});
const model = (await client.models.list()).data[0].id;

const messages = [{ role: "user", content: "My name is Ada." }];
const answer = await client.chat.completions.create({ model, messages, temperature: 0 });
console.log(answer.choices[0].message.content);

messages.push(answer.choices[0].message, { role: "user", content: "What is my name?" });
const stream = await client.chat.completions.create({ model, messages, temperature: 0, stream: true });
for await (const chunk of stream) process.stdout.write(chunk.choices[0].delta.content ?? "");
console.log();

try {
  await client.chat.completions.create({ model: "none", messages });
} catch (error) {
  if (!(error instanceof OpenAI.NotFoundError)) throw error;
  console.log(`refused: ${error.message}`);
}
