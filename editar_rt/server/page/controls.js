/** What buttons, keys, files and the clipboard do. Strokes and views are the stage's own. */
import { draw, ui } from "./dom.js";

/** @param {Controls} page */
export function connect({ actions, stage, mask, begin, stop, see, compare, open, loadMask, resize }) {
	for (const [id, , does] of actions) {
		if (id) ui[id].onclick = does;
		if (ui[`i-${id}`]) draw(ui[id], id);
	}
	draw(ui.compare, "compare");
	ui.form.onsubmit = (e) => {
		e.preventDefault();
		begin();
	};
	// Edit and Stop lie in one place: the second half of a double click is meant for neither.
	const once = (/** @type {MouseEvent} */ e) => {
		if (e.detail < 2) return;
		e.preventDefault();
		e.stopPropagation();
	};
	ui.go.addEventListener("click", once, true);
	ui.size.oninput = () => resize(Number(ui.size.value));
	for (const [chooser, takes] of /** @type {const} */ ([[ui.file, open], [ui["mask-file"], loadMask]])) {
		chooser.onchange = () => {
			const file = chooser.files?.[0];
			if (file) takes(file);
			chooser.value = "";
		};
	}
	const hold = ui.compare;
	const release = () => compare(false);
	hold.onpointerdown = (e) => {
		hold.setPointerCapture(e.pointerId);
		compare(true);
	};
	hold.onpointerup = hold.onpointercancel = hold.onblur = hold.onkeyup = release;
	hold.onkeydown = (e) => [" ", "Enter"].includes(e.key) && compare(true);
	hold.oncontextmenu = (e) => e.preventDefault();

	addEventListener("keydown", (e) => {
		if (document.querySelector("dialog[open]")) return;
		const at = e.target instanceof Element ? e.target : document.body;
		const typing = at.matches("textarea, input:not([type=range], [type=radio])");
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
		else if (!(e.repeat && e.key === "Enter" && at.matches("button"))) return; // Held, it would go on to the next button.
		e.preventDefault();
	});
	addEventListener("keyup", (e) => {
		if (e.key.toLowerCase() === "c") release();
		if (e.key === " ") stage.held = false;
	});
	addEventListener("blur", () => {
		stage.held = false;
		release();
	});
	addEventListener("paste", (e) => {
		const file = [...(e.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
		if (!file) return;
		e.preventDefault();
		open(file);
	});
	const over = (/** @type {boolean} */ on) => ui.stage.classList.toggle("over", on);
	addEventListener("dragover", (e) => {
		e.preventDefault();
		over(true);
	});
	addEventListener("dragleave", () => over(false));
	addEventListener("drop", (e) => {
		e.preventDefault();
		over(false);
		const file = e.dataTransfer?.files[0];
		if (file) (e.target instanceof Element && e.target.closest("#tools") ? loadMask : open)(file);
	});
}
