/**
 * The page: what is open, what runs, what is shown, and the controls. One source picture and one mask are being worked
 * on; a run edits the source and has a result for each variant; `seen` is the variant on the stage, or the source.
 */
import { Refused } from "./api.js";
import { connect } from "./controls.js";
import { block, button, find, input, make } from "./dom.js";
import { History } from "./history.js";
import { Mask, SIDE, maskFile } from "./mask.js";
import { known, patiently } from "./patience.js";
import { download, joined, opened, read } from "./pictures.js";
import { Stage } from "./stage.js";

/** @typedef {import("./history.js").Entry} Entry */
/** @typedef {import("./history.js").Settings} Settings */
/** @typedef {import("./pictures.js").Picture} Picture */
/** @typedef {{seed: number, row: number, picture: Picture | null, entry: Entry | null}} Variant */
/** @typedef {{source: Picture, variants: Variant[], rows: number}} Run */
/** @typedef {{entry: Entry, picture: Picture, row: number}} Above the result whose rows above a line are kept */

const SOURCE = -1;

const canvas = find("canvas", HTMLCanvasElement);
const form = find("form", HTMLFormElement);
const prompt = find("prompt", HTMLTextAreaElement);
const task = find("task", HTMLSelectElement);
const mask = new Mask();
const stage = new Stage(canvas, mask);
const history = new History(block("history"), { show: showEntry, use });

/** @type {import("./api.js").Model | null} */
let model = null;
/** @type {Picture | null} */
let source = null;
/** @type {Run | null} */
let shown = null;
/** @type {AbortController | null} */
let running = null;
let seen = SOURCE;
let comparing = false;
let beside = false;
let line = 0; // the row line's place

// What is shown.

/** @param {string} text */
function say(text) {
	block("status").textContent = text;
}

/** @param {string} text */
function warn(text) {
	block("alert").textContent = text;
}

const variant = () => shown?.variants[seen] ?? null;

/** @param {number} index */
function see(index) {
	const moved = index !== seen;
	seen = index;
	line = shown?.rows ?? 0;
	if (moved && index !== SOURCE) stage.masked = false;
	if (moved && index === SOURCE) stage.masked = true;
	refresh();
}

function refresh() {
	const now = variant();
	const compared = comparing && shown;
	const picture = compared ? shown?.source : now ? (now.picture ?? shown?.source) : source;
	stage.picture = picture?.pixels ?? null;
	stage.drawn = now && !compared && !now.entry && shown ? now.row / shown.rows : 1;
	block("empty").hidden = source !== null;
	for (const id of ["canvas", "bar", "tools", "masked"]) block(id).hidden = source === null;
	const finished = now?.entry != null && !beside;
	button("download").disabled = !picture;
	button("further").hidden = !finished;
	button("compare").hidden = !now || beside;
	button("beside").hidden = (shown?.variants.length ?? 0) < 2;
	button("beside").ariaPressed = String(beside);
	button("see").ariaPressed = String(stage.masked);
	button("edit").hidden = running !== null;
	button("stop").hidden = running === null;
	block("rowline").hidden = !finished || running !== null || comparing;
	block("sheet").hidden = !beside;
	canvas.inert = beside;
	canvas.ariaLabel = now ? `Result with seed ${now.seed}, and mask` : "Source picture, and mask";
	tiles(block("views"), 40);
	if (beside) tiles(block("sheet"), 512);
	stage.draw();
}

/** A button for the source and for each variant. @param {HTMLElement} box @param {number} size */
function tiles(box, size) {
	const all = shown?.variants ?? [];
	const wanted = source ? all.length + 1 : 0;
	while (box.childElementCount > wanted) box.lastElementChild?.remove();
	while (box.childElementCount < wanted) {
		const index = box.childElementCount - 1;
		const tile = make("button", "tile");
		tile.append(make("canvas"), make("span"));
		tile.onclick = () => {
			beside = false;
			see(index);
		};
		box.append(tile);
	}
	[...box.children].forEach((tile, i) => {
		const at = i - 1;
		const each = all[at];
		const picture = each ? (each.picture ?? shown?.source) : source;
		const small = tile.querySelector("canvas");
		const text = tile.querySelector("span");
		if (!small || !text || !picture) return;
		small.width = small.height = size;
		const pen = small.getContext("2d");
		if (pen) {
			pen.imageSmoothingQuality = "high";
			pen.globalAlpha = each && !each.picture ? 0.35 : 1;
			pen.drawImage(picture.pixels, 0, 0, size, size);
		}
		text.textContent = at === SOURCE ? "Source" : size > 100 ? `Seed ${each.seed}` : String(at + 1);
		tile.ariaPressed = String(at === seen);
		tile.ariaLabel = at === SOURCE ? "Source" : `Variant ${at + 1}, seed ${each.seed}`;
	});
}

// Pictures.

/** @param {File} file */
async function open(file) {
	warn("");
	try {
		const { picture, cut } = await opened(file);
		source = picture;
		shown = null;
		beside = false;
		mask.clear();
		stage.fit();
		see(SOURCE);
		stage.masked = true;
		refresh();
		say(cut || "Paint over what may change, or leave the mask empty to change anything.");
		canvas.focus({ preventScroll: true });
	} catch (e) {
		warn(words(e));
	}
}

/** @param {Blob} file */
async function loadMask(file) {
	try {
		await mask.load(file);
		stage.masked = true;
		refresh();
	} catch {
		warn("The mask is not a picture that this browser reads; PNG, JPEG and WebP are.");
	}
}

/** @param {unknown} e */
function words(e) {
	const text = e instanceof Refused || !(e instanceof TypeError) ? String(e instanceof Error ? e.message : e) : "";
	const said = text || "the server cannot be reached; is editar serve still running?";
	return said[0].toUpperCase() + said.slice(1) + (/[.?!]$/.test(said) ? "" : ".");
}

// Editing.

/** @returns {Settings} */
function settings() {
	const fields = Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, String(value).trim()]));
	return { ...fields, prompt: prompt.value.trim(), task: task.value, n: fields.n || "1", seed: fields.seed ?? "" };
}

/** @param {Settings} wanted @param {Picture} picture @param {import("./mask.js").Bytes} masked @param {Above | null} above */
async function request(wanted, picture, masked, above) {
	const body = new FormData();
	for (const [name, value] of Object.entries(wanted)) if (value !== "") body.set(name, value);
	body.set("partial_images", String(model?.rows ?? 3));
	if (above) {
		body.set("known_tokens", above.entry.tokens);
		body.set("from_row", String(above.row));
	}
	body.set("image", picture.file, "image");
	if (masked.length) body.set("mask", await maskFile(masked), "mask.png");
	return body;
}

/**
 * Run an edit to its end, showing it row by row.
 * @param {Settings} wanted @param {Picture} picture @param {import("./mask.js").Bytes} masked @param {Above | null} above
 */
async function run(wanted, picture, masked, above = null) {
	const start = above?.row ?? 0;
	const rows = model?.rows ?? 1;
	/** @type {Run} */
	const mine = { source: picture, rows, variants: [] };
	for (let i = 0; i < Number(wanted.n); i++) {
		mine.variants.push({ seed: 0, row: start, picture: above?.picture ?? null, entry: null });
	}
	const control = new AbortController();
	const begun = performance.now();
	running = control;
	shown = mine;
	seen = SOURCE;
	warn("");
	say("Reading the picture…");
	see(0);
	try {
		const body = await request(wanted, picture, masked, above);
		for await (const event of patiently(body, control.signal, say)) {
			const each = mine.variants[event.variant];
			if (!each) continue;
			const fresh = await read(event.picture, picture.name);
			if (control.signal.aborted) break;
			each.picture = above ? await joined(above.picture, fresh, start, rows) : fresh;
			each.seed = event.seed;
			each.row = event.kind === "completed" ? rows : event.row;
			if (event.kind === "completed") {
				const id = `${Date.now()}-${event.variant}`;
				const made = { id, seed: event.seed, tokens: event.tokens, kept: false, name: picture.name, settings: wanted };
				each.entry = { ...made, picture: each.picture.file, source: picture.file, mask: masked, row: start };
				history.add(each.entry);
				if (event.warnings.length) warn(event.warnings.map(words).join(" "));
			} else {
				say(`Row ${event.row} of ${rows}${mine.variants.length > 1 ? `, variant ${event.variant + 1}` : ""}`);
			}
			if (shown === mine) {
				if (each.entry && variant() === each) line = rows;
				refresh();
			}
		}
		if (mine.variants.some(({ entry }) => !entry)) throw new Error("the connection ended before the result");
		const [first, last] = [mine.variants[0].seed, mine.variants[mine.variants.length - 1].seed];
		const seeds = first === last ? `seed ${first}` : `seeds ${first} to ${last}`;
		say(`Done in ${((performance.now() - begun) / 1000).toFixed(1)} s, ${seeds}`);
	} catch (e) {
		if (control.signal.aborted) say(`Stopped at row ${Math.max(...mine.variants.map(({ row }) => row))} of ${rows}`);
		else {
			say("Not finished");
			warn(words(e));
		}
	} finally {
		running = null;
		if (shown === mine && mine.variants.every(({ picture: made }) => !made)) {
			shown = null;
			see(SOURCE);
		}
		refresh();
	}
}

function begin() {
	if (running) return;
	if (!source) {
		warn("Open a picture first.");
		return;
	}
	if (form.reportValidity()) void run(settings(), source, mask.empty ? new Uint8Array() : mask.now.slice());
}

function stop() {
	running?.abort();
}

/** Draw the rows below the line again, with another seed. */
function reroll() {
	const now = variant();
	if (running || !now?.entry || !now.picture || !shown || line >= shown.rows) return;
	const wanted = { ...now.entry.settings, n: input("n").value || "1", seed: "" };
	void run(wanted, shown.source, now.entry.mask, { entry: now.entry, picture: now.picture, row: line });
}

// History.

/** @param {Entry} entry */
async function showEntry(entry) {
	const [picture, from] = await Promise.all([read(entry.picture, entry.name), read(entry.source, entry.name)]);
	const rows = model?.rows ?? 1;
	source ??= from;
	shown = { source: from, rows, variants: [{ seed: entry.seed, row: rows, picture, entry }] };
	beside = false;
	seen = SOURCE;
	see(0);
}

/** @param {Entry} entry */
async function use(entry) {
	source = await read(entry.source, entry.name);
	shown = null;
	for (const field of form.querySelectorAll("input, select, textarea")) {
		if (field instanceof HTMLInputElement || field instanceof HTMLSelectElement) {
			field.value = entry.settings[field.name] ?? "";
		}
	}
	prompt.value = entry.settings.prompt;
	input("n").value = "1";
	const seed = form.elements.namedItem("seed");
	if (seed instanceof HTMLInputElement) seed.value = String(entry.seed);
	mask.set(entry.mask.length ? entry.mask.slice() : new Uint8Array(SIDE * SIDE));
	seen = 0;
	see(SOURCE);
	say("Picture, mask and settings are those of the result.");
}

// The row line.

function placeLine() {
	const [box, rows] = [block("rowline"), shown?.rows ?? 1];
	stage.kept = box.hidden ? 1 : line / rows;
	const { corner, scale } = stage;
	const handle = block("row");
	box.style.transform = `translate(${corner.x}px, ${corner.y + (line / rows) * scale}px)`;
	box.style.width = `${scale}px`;
	handle.ariaValueMin = "0";
	handle.ariaValueMax = String(rows);
	handle.ariaValueNow = String(line);
	const below = rows - line;
	const text = below === 0 ? "drag up to re-roll" : `${below} of ${rows} rows are drawn again`;
	handle.ariaValueText = text;
	handle.dataset.hint = below === 0 ? "Drag up to re-roll" : "";
	button("reroll").hidden = below === 0;
	button("reroll").textContent = `Re-roll ${below} row${below === 1 ? "" : "s"} below`;
}

/** @param {number} to */
function moveLine(to) {
	line = Math.min(Math.max(Math.round(to), 0), shown?.rows ?? 0);
	stage.draw();
}

const handle = block("row");
handle.onpointerdown = (e) => handle.setPointerCapture(e.pointerId);
handle.onpointermove = (e) => {
	if (!handle.hasPointerCapture(e.pointerId) || !shown) return;
	moveLine(stage.inside(stage.at(e)).y * shown.rows);
};
handle.onkeydown = (e) => {
	const last = shown?.rows ?? 0;
	const steps = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1, PageUp: -4, PageDown: 4, Home: -last, End: last };
	const step = steps[/** @type {keyof typeof steps} */ (e.key)];
	if (e.key === "Enter") reroll();
	else if (step) moveLine(line + step);
	else return;
	e.preventDefault();
};
stage.onview = () => {
	placeLine();
	const side = source?.pixels.width ?? 1;
	block("zoom").textContent = `${Math.round((100 * stage.scale) / side)} %`;
};

// Controls.

/** @param {string} tool */
function take(tool) {
	stage.tool = tool;
	for (const each of ["brush", "eraser", "hand"]) {
		button(`tool-${each}`).ariaPressed = String(each === tool);
	}
	stage.draw();
}

/** @param {number} size */
function resize(size) {
	input("size").value = String(size);
	stage.width = Number(input("size").value) / SIDE;
	stage.draw();
}

function save() {
	const now = variant();
	const name = (source?.name ?? "picture").replace(/\.[^.]*$/, "");
	if (now?.picture) download(now.picture.file, `${name}-${now.seed}.png`);
	else if (source) download(source.file, `${name}.png`);
}

function further() {
	const now = variant();
	if (!now?.picture) return;
	source = now.picture;
	shown = null;
	see(SOURCE);
	say("The result is now the source; the mask is still there.");
}

/** @param {number} index of a variant, if there is one */
function pick(index) {
	if (index < (shown?.variants.length ?? 0)) see(index);
}

/** @param {boolean} on */
function compare(on) {
	if (comparing === on || !variant()) return;
	comparing = on;
	refresh();
}

function toggleMask() {
	stage.masked = !stage.masked;
	refresh();
}

function toggleBeside() {
	if ((shown?.variants.length ?? 0) > 1) beside = !beside;
	refresh();
}

mask.onchange = () => {
	button("undo").disabled = mask.past.length === 0;
	button("redo").disabled = mask.future.length === 0;
	button("mask-save").disabled = mask.empty;
	block("masked").textContent = mask.empty ? "No mask" : `Mask ${Math.round(100 * mask.painted) || "<1"} %`;
	stage.draw();
};
stage.onpaint = () => {
	if (!stage.masked) toggleMask();
};

const grow = (/** @type {number} */ factor) => resize(Math.max(Number(input("size").value) * factor, 6));
const choose = () => input("file").click();
/** @type {import("./controls.js").Action[]} */
const actions = [
	["open", "o", choose],
	["choose", "", choose],
	["download", "s", save],
	["further", "", further],
	["beside", "g", toggleBeside],
	["stop", "", stop],
	["tool-brush", "b", () => take("brush")],
	["tool-eraser", "e", () => take("eraser")],
	["tool-hand", "h", () => take("hand")],
	["undo", "", () => mask.undo()],
	["redo", "", () => mask.redo()],
	["invert", "i", () => mask.invert()],
	["clear", "x", () => mask.clear()],
	["see", "m", toggleMask],
	["mask-load", "", () => input("mask-file").click()],
	["mask-save", "", async () => download(await maskFile(mask.now), "mask.png")],
	["in", "+=", () => stage.zoom(1.25)],
	["out", "-", () => stage.zoom(0.8)],
	["fit", "0", () => stage.fit()],
	["reroll", "", reroll],
	["", "[", () => grow(0.8)],
	["", "]", () => grow(1.25)],
	["", "c", () => compare(true)],
];
connect({ actions, stage, mask, begin, stop, see: pick, compare, open, loadMask, resize });

// The beginning.

history.onchange = () => {
	block("none").hidden = history.entries.length > 0;
};

async function start() {
	try {
		model = await known();
	} catch (e) {
		warn(words(e));
		return;
	}
	const { id, size, rows, tasks, defaults, variants } = model;
	block("model").textContent = `${id} · ${size} × ${size} pixels · ${rows} rows`;
	input("n").max = String(variants);
	task.replaceChildren(...tasks.map((name) => new Option(name, name)));
	for (const [name, value] of Object.entries(defaults)) {
		const field = form.elements.namedItem(name);
		if (name !== "seed" && field instanceof HTMLInputElement && typeof value === "number") field.placeholder = String(value);
	}
}

mask.onchange();
refresh();
void history.restore();
void start();
