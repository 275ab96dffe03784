/** Asking the server with patience: it may want a key first, or be busy. */
import { Refused, edit, model } from "./api.js";
import { ui } from "./dom.js";

const TRIES = 5;
const KEY = "editar-key";
let key = "";
try {
	key = sessionStorage.getItem(KEY) ?? "";
} catch {} // A browser may store nothing.

/** What the server's model is. @param {AbortSignal} [signal] @returns {Promise<Model>} */
export async function known(signal) {
	try {
		return await model(key, signal);
	} catch (e) {
		if (e instanceof Refused && e.status === 401 && (await askKey())) return known(signal);
		throw e;
	}
}

/**
 * The events of an edit. A busy server is asked again when it says so, one that wants a key after it was given.
 * @param {FormData} body @param {AbortSignal} signal @param {(text: string) => void} say
 */
export async function* patiently(body, signal, say) {
	for (let tries = 1; ; tries++) {
		try {
			yield* edit(body, key, signal);
			return;
		} catch (e) {
			if (!(e instanceof Refused)) throw e;
			if (e.status === 401 && (await askKey())) continue;
			if (!e.wait || tries === TRIES) throw e;
			say(`The server is busy; trying again in ${e.wait} s`);
			await new Promise((resolve, reject) => {
				setTimeout(resolve, e.wait * 1000);
				signal.addEventListener("abort", () => reject(signal.reason));
			});
		}
	}
}

/** @returns {Promise<boolean>} whether a key was given */
function askKey() {
	if (key) ui["ask-title"].textContent = "That is not the server's key";
	ui.key.value = "";
	return new Promise((resolve) => {
		ui.ask.returnValue = "";
		ui.ask.onclose = () => {
			const given = ui.ask.returnValue === "use";
			if (given) key = ui.key.value;
			try {
				sessionStorage.setItem(KEY, key);
			} catch {}
			resolve(given);
		};
		ui.ask.showModal();
	});
}
