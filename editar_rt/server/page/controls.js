/** What buttons, keys, files and the clipboard do. Strokes and views are the stage's own. */
import { block, button, draw, find, input } from "./dom.js";

/** A button's id or "", the keys that do the same, and what that is. @typedef {[id: string, keys: string, does: () => void]} Action */

/**
 * @param {{
 *   actions: Action[], stage: import("./stage.js").Stage, mask: import("./mask.js").Mask, begin: () => void,
 *   stop: () => void, see: (variant: number) => void, compare: (on: boolean) => void, open: (file: File) => void,
 *   loadMask: (file: File) => void, resize: (size: number) => void,
 * }} page
 */
export function connect({ actions, stage, mask, begin, stop, see, compare, open, loadMask, resize }) {
	for (const [id, , does] of actions) {
		if (id) button(id).onclick = does;
		if (document.getElementById(`i-${id}`)) draw(button(id), id);
	}
	draw(button("compare"), "compare");
	find("form", HTMLFormElement).onsubmit = (e) => {
		e.preventDefault();
		begin();
	};
	input("size").oninput = () => resize(Number(input("size").value));
	for (const [id, takes] of /** @type {const} */ ([["file", open], ["mask-file", loadMask]])) {
		const chooser = input(id);
		chooser.onchange = () => {
			const file = chooser.files?.[0];
			if (file) void takes(file);
			chooser.value = "";
		};
	}
	const hold = button("compare");
	hold.onpointerdown = (e) => {
		hold.setPointerCapture(e.pointerId);
		compare(true);
	};
	hold.onpointerup = hold.onpointercancel = hold.onblur = () => compare(false);
	hold.onkeydown = (e) => [" ", "Enter"].includes(e.key) && compare(true);
	hold.onkeyup = () => compare(false);
	hold.oncontextmenu = (e) => e.preventDefault();

	addEventListener("keydown", (e) => {
		if (document.querySelector("dialog[open]")) return;
		const at = e.target instanceof Element ? e.target : document.body;
		const typing = at.matches("textarea, input:not([type=range])");
		const pressed = e.key.toLowerCase();
		const action = actions.find(([, keys]) => keys.includes(pressed) && pressed.length === 1);
		if (e.key === "Escape") stop();
		else if (e.ctrlKey || e.metaKey) {
			if (e.key === "Enter") begin();
			else if (typing) return;
			else if (pressed === "y" || (pressed === "z" && e.shiftKey)) mask.redo();
			else if (pressed === "z") mask.undo();
			else return;
		} else if (typing || e.altKey || at.matches("select")) return;
		else if (e.key === " " && at.matches("body, #canvas")) {
			stage.held = true;
			stage.draw();
		} else if (action) action[2]();
		else if (/^[1-9]$/.test(e.key)) see(Number(e.key) - 1);
		else return;
		e.preventDefault();
	});
	addEventListener("keyup", (e) => {
		if (e.key.toLowerCase() === "c") compare(false);
		if (e.key === " ") stage.held = false;
	});
	addEventListener("blur", () => {
		stage.held = false;
		compare(false);
	});
	addEventListener("paste", (e) => {
		const file = [...(e.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
		if (!file) return;
		e.preventDefault();
		void open(file);
	});
	addEventListener("dragover", (e) => {
		e.preventDefault();
		block("stage").classList.add("over");
	});
	addEventListener("dragleave", () => block("stage").classList.remove("over"));
	addEventListener("drop", (e) => {
		e.preventDefault();
		block("stage").classList.remove("over");
		const file = e.dataTransfer?.files[0];
		if (file) (e.target instanceof Element && e.target.closest("#tools") ? loadMask : open)(file);
	});
}
