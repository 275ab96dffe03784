/** Asking the server with patience: it may want a key first, or be busy. */
import { Refused, edit, model } from "./api.js";
import { find, input } from "./dom.js";

const TRIES = 5;
const dialog = find("ask", HTMLDialogElement);

/** What the server's model is. @returns {Promise<import("./api.js").Model>} */
export async function known() {
	try {
		return await model(key());
	} catch (e) {
		if (e instanceof Refused && e.status === 401 && (await askKey())) return known();
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
			yield* edit(body, key(), signal);
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

const key = () => sessionStorage.getItem("editar-key") ?? "";

/** @returns {Promise<boolean>} whether a key was given */
function askKey() {
	return new Promise((resolve) => {
		dialog.returnValue = "";
		dialog.onclose = () => {
			if (dialog.returnValue === "use") sessionStorage.setItem("editar-key", input("key").value);
			resolve(dialog.returnValue === "use");
		};
		dialog.showModal();
	});
}
