/**
 * The server's API: what the model is, and an edit as a stream of events. Nothing here knows the page.
 */

/**
 * @typedef {{id: string, size: number, rows: number, tasks: string[], defaults: Record<string, unknown>, variants: number}} Model
 * @typedef {{variant: number, seed: number, row: number, rows: number}} Place
 * @typedef {{kind: "partial", picture: Blob} & Place} Partial
 * @typedef {{kind: "completed", picture: Blob, tokens: string, settings: Record<string, unknown>, warnings: string[]} & Place} Completed
 */

/** A refusal in the server's own words. */
export class Refused extends Error {
	/** @param {string} message @param {number} status @param {number} wait seconds until the server asks to be tried again, or 0 */
	constructor(message, status = 0, wait = 0) {
		super(message);
		this.status = status;
		this.wait = wait;
	}
}

/** @param {string} key @returns {Record<string, string>} */
const headers = (key) => (key ? { authorization: `Bearer ${key}` } : {});

/** @param {string} path @param {RequestInit} init @returns {Promise<Response>} */
async function call(path, init) {
	const answer = await fetch(new URL(path, document.baseURI), init);
	if (answer.ok) return answer;
	const said = await answer.json().catch(() => ({}));
	const wait = [429, 503].includes(answer.status) ? Number(answer.headers.get("retry-after")) || 0 : 0;
	throw new Refused(said?.error?.message ?? `the server answered ${answer.status}`, answer.status, wait);
}

/** @param {string} key @returns {Promise<Model>} */
export async function model(key) {
	const { data } = await (await call("v1/models", { headers: headers(key) })).json();
	const { id, editar = {} } = data[0];
	return {
		id,
		size: Number(editar.size ?? 512),
		rows: Number(editar.rows ?? 32),
		tasks: editar.tasks ?? ["edit"],
		defaults: editar.defaults ?? {},
		variants: Number(editar.limits?.n ?? 4),
	};
}

/** @param {string} text @param {string} type */
function decoded(text, type) {
	return new Blob([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], { type });
}

/**
 * Run an edit; breaking the loop or aborting the signal cancels it on the server.
 * @param {FormData} form @param {string} key @param {AbortSignal} signal
 * @returns {AsyncGenerator<Partial | Completed>}
 */
export async function* edit(form, key, signal) {
	form.set("stream", "true");
	const { body } = await call("v1/images/edits", { method: "POST", body: form, headers: headers(key), signal });
	if (!body) return;
	for await (const event of events(body)) {
		if (event.error) throw new Refused(event.error.message);
		const { variant = 0, seed = 0, row = 0, rows = 0, tokens = "", settings = {}, warnings = [] } = event.editar ?? {};
		const picture = decoded(event.b64_json, `image/${event.output_format ?? "png"}`);
		const place = { variant, seed, row, rows, picture };
		if (event.type === "image_edit.partial_image") yield { kind: "partial", ...place };
		else if (event.type === "image_edit.completed") yield { kind: "completed", ...place, tokens, settings, warnings };
	}
}

/**
 * The data of server-sent events, parsed.
 * @param {ReadableStream<Uint8Array>} body @returns {AsyncGenerator<any>}
 */
async function* events(body) {
	const reader = body.getReader();
	const text = new TextDecoder();
	let waiting = "";
	try {
		for (;;) {
			const { done, value } = await reader.read();
			if (done) return;
			const parts = (waiting + text.decode(value, { stream: true })).split(/\r?\n\r?\n/);
			waiting = parts.pop() ?? "";
			for (const part of parts) {
				const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
				const data = lines.map((line) => line.slice(5).trimStart()).join("\n");
				if (data && data !== "[DONE]") yield JSON.parse(data);
			}
		}
	} finally {
		reader.cancel().catch(() => {});
	}
}
