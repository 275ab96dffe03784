/**
 * The page's elements: found by their ids, or made.
 */

/** @template {HTMLElement} T @param {string} id @param {new () => T} kind @returns {T} */
export function find(id, kind) {
	const found = document.getElementById(id);
	if (!(found instanceof kind)) throw new Error(`the page has no ${id}`);
	return found;
}
export const button = (/** @type {string} */ id) => find(id, HTMLButtonElement);
export const input = (/** @type {string} */ id) => find(id, HTMLInputElement);
export const block = (/** @type {string} */ id) => find(id, HTMLElement);

/** @template {keyof HTMLElementTagNameMap} T @param {T} tag @param {string} [name] @returns {HTMLElementTagNameMap[T]} */
export function make(tag, name = "") {
	const made = document.createElement(tag);
	made.className = name;
	if (made instanceof HTMLButtonElement) made.type = "button";
	return made;
}

/** @param {string} icon @param {string} label @param {string} title */
export function action(icon, label, title) {
	const button = make("button");
	const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
	const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
	use.setAttribute("href", `#i-${icon}`);
	drawing.append(use);
	button.append(drawing);
	button.ariaLabel = label;
	button.title = title;
	return button;
}
