/**
 * What was made: a list with settings. Kept entries stay in this browser (IndexedDB), the others until the page closes.
 */
import { action, make } from "./dom.js";

/** @typedef {{prompt: string, task: string, n: string, seed: string} & Record<string, string>} Settings */
/**
 * @typedef {{
 *   id: string, seed: number, tokens: string, kept: boolean, name: string, settings: Settings,
 *   picture: Blob, source: Blob, mask: Uint8Array<ArrayBuffer>, row: number,
 * }} Entry  `row`: the rows above it came from an earlier result; 0 for a whole edit
 */

const LONGEST = 60; // entries that are not kept
const STORE = "kept";

export class History {
	/** @param {HTMLElement} list @param {{show: (e: Entry) => void, use: (e: Entry) => void}} does */
	constructor(list, does) {
		this.list = list;
		this.does = does;
		/** @type {Entry[]} newest first */
		this.entries = [];
		/** @type {() => void} */
		this.onchange = () => {};
	}

	/** Entries that were kept earlier. A browser without a store has none. */
	async restore() {
		const kept = await ask("readonly", (store) => store.getAll()).catch(() => []);
		for (const entry of /** @type {Entry[]} */ (kept)) this.add(entry);
	}

	/** @param {Entry} entry */
	add(entry) {
		this.entries.unshift(entry);
		this.list.prepend(this.card(entry));
		const loose = this.entries.filter((each) => !each.kept);
		for (const old of loose.slice(LONGEST)) void this.remove(old);
		this.onchange();
	}

	/** @param {Entry} entry */
	async remove(entry) {
		if (entry.kept) await ask("readwrite", (store) => store.delete(entry.id)).catch(() => {});
		this.entries = this.entries.filter((each) => each !== entry);
		const card = this.list.querySelector(`[data-id="${entry.id}"]`);
		const picture = card?.querySelector("img");
		if (picture) URL.revokeObjectURL(picture.src);
		card?.remove();
		this.onchange();
	}

	/** @param {Entry} entry @param {HTMLButtonElement} button */
	async keep(entry, button) {
		entry.kept = !entry.kept;
		const change = (/** @type {IDBObjectStore} */ store) =>
			/** @type {IDBRequest} */ (entry.kept ? store.put(entry) : store.delete(entry.id));
		await ask("readwrite", change).catch(() => {
			button.title = "This browser does not store pictures; the result stays until the page closes";
		});
		button.ariaPressed = String(entry.kept);
	}

	/** @param {Entry} entry */
	card(entry) {
		const card = make("li");
		card.dataset.id = entry.id;
		const look = make("button", "look");
		const picture = make("img");
		picture.src = URL.createObjectURL(entry.picture);
		picture.alt = "";
		const text = make("span", "words");
		const first = make("span", "first");
		first.textContent = entry.settings.prompt;
		const second = make("span", "quiet");
		second.textContent = described(entry);
		text.append(first, second);
		look.append(picture, text);
		look.onclick = () => this.does.show(entry);
		const star = action("star", "Keep", "Keep in this browser");
		star.ariaPressed = String(entry.kept);
		star.onclick = () => this.keep(entry, star);
		const again = action("again", "Use again", "Use its picture, mask and settings again");
		again.onclick = () => this.does.use(entry);
		const bin = action("bin", "Delete", "Delete");
		bin.onclick = async () => {
			const next = /** @type {HTMLElement | null} */ (card.nextElementSibling ?? card.previousElementSibling);
			await this.remove(entry);
			(next?.querySelector("button") ?? this.list).focus();
		};
		const actions = make("span", "actions");
		actions.append(again, star, bin);
		card.append(look, actions);
		return card;
	}
}

/** @param {Entry} entry */
function described({ seed, row, settings, mask }) {
	const { task, cfg_scale, temperature, top_k, top_p } = settings;
	const parts = [`seed ${seed}`];
	if (task !== "edit") parts.unshift(task);
	if (cfg_scale) parts.push(`guidance ${cfg_scale}`);
	if (temperature) parts.push(`temperature ${temperature}`);
	if (top_k) parts.push(`top-k ${top_k}`);
	if (top_p) parts.push(`top-p ${top_p}`);
	if (mask.length) parts.push("masked");
	if (row) parts.push(`from row ${row + 1}`);
	return parts.join(" · ");
}

/**
 * One request to the browser's store.
 * @template T @param {IDBTransactionMode} mode @param {(store: IDBObjectStore) => IDBRequest<T>} request @returns {Promise<T>}
 */
function ask(mode, request) {
	return new Promise((resolve, reject) => {
		const opening = indexedDB.open("editar", 1);
		opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "id" });
		opening.onerror = () => reject(opening.error);
		opening.onsuccess = () => {
			const asked = request(opening.result.transaction(STORE, mode).objectStore(STORE));
			asked.onsuccess = () => resolve(asked.result);
			asked.onerror = () => reject(asked.error);
			opening.result.close();
		};
	});
}
