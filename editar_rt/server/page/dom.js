/** The page's elements: by their ids, or made. */

const all = [...document.querySelectorAll("[id]")];
export const ui = /** @type {Elements} */ (Object.fromEntries(all.map((each) => [each.id, each])));

/** @template {keyof HTMLElementTagNameMap} T @param {T} tag @returns {HTMLElementTagNameMap[T]} */
export function make(tag, name = "", text = "") {
	const made = document.createElement(tag);
	made.className = name;
	made.textContent = text;
	return made;
}

/** Put an icon of the page into a button. @param {HTMLElement} button @param {string} name */
export function draw(button, name) {
	button.insertAdjacentHTML("afterbegin", `<svg><use href="#i-${name}"/></svg>`);
}
