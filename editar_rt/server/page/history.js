/** What was made, with settings. Kept entries stay in this browser (IndexedDB), the others until the page closes. */
import { draw, make } from "./dom.js";

const LONGEST = 60; // entries that are not kept
const STORE = "kept";

export class History {
	/** Newest first. @type {Entry[]} */
	entries = [];
	/** @type {() => void} */
	onchange = () => {};

	/** @param {HTMLElement} list @param {{show: (e: Entry) => void, use: (e: Entry) => void, warn: (text: string) => void}} does */
	constructor(list, does) {
		this.list = list;
		this.does = does;
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
		document.getElementById(entry.id)?.remove();
		this.onchange();
	}

	/** @param {Entry} entry @param {HTMLButtonElement} button */
	async keep(entry, button) {
		entry.kept = !entry.kept;
		const change = (/** @type {IDBObjectStore} */ store) =>
			/** @type {IDBRequest} */ (entry.kept ? store.put(entry) : store.delete(entry.id));
		await ask("readwrite", change).catch(() => {
			entry.kept = false;
			this.does.warn("This browser cannot keep it: its store is full or turned off.");
		});
		button.ariaPressed = String(entry.kept);
	}

	/** @param {Entry} entry */
	card(entry) {
		const card = make("li");
		card.id = entry.id;
		const look = make("button", "look");
		const picture = make("img");
		picture.src = URL.createObjectURL(entry.picture);
		picture.onload = () => URL.revokeObjectURL(picture.src);
		picture.alt = "";
		if (entry.settings.fit === "pad") picture.style.aspectRatio = `${entry.size.width} / ${entry.size.height}`;
		const text = make("span", "words");
		text.append(make("span", "first", entry.settings.prompt), make("span", "quiet", described(entry)));
		look.append(picture, text);
		look.onclick = () => this.does.show(entry);
		const actions = make("span", "actions");
		const [again, star, bin] = ["Use again", "Keep", "Delete"].map((label) => {
			const button = make("button");
			button.title = label;
			button.ariaLabel = `${label}: ${entry.settings.prompt}, seed ${entry.seed}`;
			draw(button, label.split(" ").pop() ?? "");
			actions.append(button);
			return button;
		});
		again.onclick = () => this.does.use(entry);
		star.ariaPressed = String(entry.kept);
		star.onclick = () => this.keep(entry, star);
		bin.onclick = async () => {
			const next = card.nextElementSibling ?? card.previousElementSibling;
			await this.remove(entry);
			(next?.querySelector("button") ?? this.list).focus();
		};
		card.append(look, actions);
		return card;
	}
}

const NAMES = { cfg_scale: "guidance", temperature: "temperature", top_k: "top-k", top_p: "top-p" };

/** @param {Entry} entry */
function described({ seed, row, settings, masked }) {
	const parts = [`seed ${seed}`];
	if (settings.task !== "edit") parts.unshift(settings.task);
	for (const [field, name] of Object.entries(NAMES)) if (settings[field]) parts.push(`${name} ${settings[field]}`);
	if (masked.length) parts.push("masked");
	if (row) parts.push(`from row ${row + 1}`);
	return parts.join(" · ");
}

/**
 * One request to the browser's store.
 * @template T @param {IDBTransactionMode} mode @param {(store: IDBObjectStore) => IDBRequest<T>} request @returns {Promise<T>}
 */
function ask(mode, request) {
	return new Promise((resolve, reject) => {
		const opening = indexedDB.open("editar-page", 1);
		opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "id" });
		opening.onerror = () => reject(opening.error);
		opening.onsuccess = () => {
			const done = opening.result.transaction(STORE, mode);
			const asked = request(done.objectStore(STORE));
			done.oncomplete = () => resolve(asked.result);
			done.onabort = () => reject(done.error);
			opening.result.close();
		};
	});
}
