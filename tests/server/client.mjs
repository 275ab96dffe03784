// What the stock JavaScript client gets from a server, as one JSON document: node client.mjs URL PICTURE PROMPT
import fs from "node:fs";
import OpenAI, { APIUserAbortError } from "openai";

const [url, picture, prompt] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "unused", maxRetries: 0 });
const edit = (options = {}, request = {}) =>
  client.images.edit({ image: fs.createReadStream(picture), prompt, seed: 1, ...options }, request);

const found = {};
found.plain = (await edit()).data[0].b64_json;
found.nested = (await edit({ seed: undefined, editar: { seed: 3 } })).data[0].editar.seed;
found.events = [];
for await (const event of await edit({ stream: true, partial_images: 2, n: 2 })) found.events.push(event.type);
try {
  await edit({ top_p: 2 });
} catch (error) {
  found.error = [error.constructor.name, error.status, error.param];
}
const controller = new AbortController();
const aborted = edit({ n: 8 }, { signal: controller.signal }).catch((error) => error instanceof APIUserAbortError);
setTimeout(() => controller.abort(), 100);
found.aborted = await aborted;
found.models = (await client.models.list()).data.map((model) => model.id);
console.log(JSON.stringify(found));
