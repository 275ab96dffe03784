/** The page's elements: found by their ids, or made. */

/** @template {HTMLElement} T @param {string} id @param {new () => T} kind @returns {T} */
export function find(id, kind) {
	const found = document.getElementById(id);
	if (!(found instanceof kind)) throw new Error(`the page has no ${id}`);
	return found;
}
export const button = (/** @type {string} */ id) => find(id, HTMLButtonElement);
export const input = (/** @type {string} */ id) => find(id, HTMLInputElement);
export const block = (/** @type {string} */ id) => find(id, HTMLElement);

/** @template {keyof HTMLElementTagNameMap} T @param {T} tag @returns {HTMLElementTagNameMap[T]} */
export function make(tag, name = "", text = "") {
	const made = document.createElement(tag);
	made.className = name;
	made.textContent = text;
	return made;
}

/** Put an icon of the page into a button. @param {HTMLElement} button @param {string} name */
export function draw(button, name) {
	const parts = ["svg", "use"].map((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));
	parts[1].setAttribute("href", `#i-${name}`);
	parts[0].append(parts[1]);
	button.prepend(parts[0]);
}
