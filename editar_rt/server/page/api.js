/** The server's API: what its model is, and an edit as a stream of events. */

/** A refusal in the server's words; `wait`: seconds until it wants to be asked again. */
export class Refused extends Error {
	constructor(message = "", status = 0, wait = 0) {
		super(message);
		this.status = status;
		this.wait = wait;
	}
}

/** @param {string} path @param {string} key @param {RequestInit} init */
async function call(path, key, init) {
	const headers = key ? { authorization: `Bearer ${key}` } : undefined;
	const answer = await fetch(new URL(path, document.baseURI), { ...init, headers });
	if (answer.ok) return answer;
	const said = await answer.json().catch(() => ({}));
	const wait = [429, 503].includes(answer.status) ? Number(answer.headers.get("retry-after")) : 0;
	throw new Refused(said?.error?.message ?? `the server answered ${answer.status}`, answer.status, wait);
}

/** @param {string} key @param {AbortSignal} [signal] @returns {Promise<Model>} */
export async function model(key, signal) {
	const { data } = await (await call("v1/models", key, { signal })).json();
	return { ...data[0].editar, id: data[0].id };
}

/**
 * Run an edit; leaving the loop or aborting the signal cancels it on the server.
 * @param {FormData} body @param {string} key @param {AbortSignal} signal @returns {AsyncGenerator<Step>}
 */
export async function* edit(body, key, signal) {
	body.set("stream", "true");
	const answer = await call("v1/images/edits", key, { method: "POST", body, signal });
	for await (const event of events(answer)) {
		if (event.error) throw new Refused(event.error.message);
		const bytes = Uint8Array.from(atob(event.b64_json), (c) => c.charCodeAt(0));
		const picture = new Blob([bytes], { type: `image/${event.output_format}` });
		yield { ...event.editar, picture, done: event.type === "image_edit.completed" };
	}
}

/** The data of server-sent events. @param {Response} answer @returns {AsyncGenerator<any>} */
async function* events(answer) {
	const reader = answer.body?.pipeThrough(new TextDecoderStream()).getReader();
	let waiting = "";
	try {
		for (;;) {
			const { done = true, value = "" } = (await reader?.read()) ?? {};
			if (done) return;
			const parts = (waiting + value).split("\n\n");
			waiting = parts.pop() ?? "";
			for (const part of parts) {
				const [, data] = part.split("\ndata:");
				if (data) yield JSON.parse(data);
			}
		}
	} finally {
		reader?.cancel().catch(() => {});
	}
}
