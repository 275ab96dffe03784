/** The page: one source picture and one mask are worked on; a run edits the source and has a result for each variant. */
import { connect } from "./controls.js";
import { block, button, find, input, make } from "./dom.js";
import { History } from "./history.js";
import { Mask, SIDE, maskFile } from "./mask.js";
import { known, patiently } from "./patience.js";
import { download, joined, opened, read } from "./pictures.js";
import { Stage } from "./stage.js";

/** @typedef {import("./history.js").Entry} Entry */
/** @typedef {import("./pictures.js").Picture} Picture */
/** @typedef {{seed: number, row: number, picture: Picture | null, entry: Entry | null}} Variant */
/** @typedef {{source: Picture | null, variants: Variant[]}} Run */
/** The result whose rows above a line are kept. @typedef {{entry: Entry, picture: Picture, row: number}} Above */

const SOURCE = -1;

const canvas = find("canvas", HTMLCanvasElement);
const form = find("form", HTMLFormElement);
const mask = new Mask();
const stage = new Stage(canvas, mask);
const history = new History(block("history"), { show: showEntry, use });

let rows = 1; // of the model
/** @type {Picture | null} */
let source = null;
/** @type {Run} */
let shown = { source, variants: [] };
/** @type {AbortController | null} */
let running = null;
let seen = SOURCE; // the variant on the stage, or the source
let comparing = false;
let beside = false;
let line = 0; // the row line's place

// What is shown.

const say = (/** @type {string} */ text) => block("status").replaceChildren(text);
const warn = (/** @type {string} */ text) => block("alert").replaceChildren(text);

const variant = () => shown.variants[seen];

/** Show a variant or the source, of another run if one is given. @param {number} index @param {Run} run */
function see(index, run = shown) {
	if (index !== seen || run !== shown) stage.masked = index === SOURCE;
	if (run !== shown) beside = false;
	shown = run;
	seen = index;
	line = rows;
	refresh();
}

/** Work on a picture. @param {Picture} picture @param {string} words */
function work(picture, words) {
	source = picture;
	see(SOURCE, { source, variants: [] });
	say(words);
}

function refresh() {
	const now = variant();
	const picture = !now ? source : comparing ? shown.source : (now.picture ?? shown.source);
	const finished = now?.entry && !beside;
	stage.picture = picture?.pixels ?? null;
	stage.drawn = !now || now.entry || comparing ? 1 : now.row / rows;
	const hidden = {
		empty: source,
		further: !finished,
		compare: !now || beside,
		beside: shown.variants.length < 2,
		edit: running,
		stop: !running,
		rowline: !finished || running || comparing,
		sheet: !beside,
	};
	for (const [id, hides] of Object.entries(hidden)) block(id).hidden = Boolean(hides);
	for (const id of ["canvas", "bar", "tools", "masked"]) block(id).hidden = !source;
	button("download").disabled = !picture;
	button("beside").ariaPressed = String(beside);
	button("see").ariaPressed = String(stage.masked);
	canvas.inert = beside;
	canvas.ariaLabel = now ? `Result with seed ${now.seed}, and mask` : "Source picture, and mask";
	tiles(block("views"), 40);
	if (beside) tiles(block("sheet"), 512);
	stage.draw();
}

/** A button for the source and for each variant. @param {HTMLElement} box @param {number} size */
function tiles(box, size) {
	const wanted = source ? shown.variants.length + 1 : 0;
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
		const each = shown.variants[i - 1];
		const picture = each ? (each.picture ?? shown.source) : source;
		const [small, text] = tile.children;
		if (!(small instanceof HTMLCanvasElement) || !picture) return;
		small.width = small.height = size;
		const pen = small.getContext("2d");
		if (pen) {
			pen.imageSmoothingQuality = "high";
			pen.globalAlpha = each && !each.picture ? 0.35 : 1;
			pen.drawImage(picture.pixels, 0, 0, size, size);
		}
		text.textContent = !each ? "Source" : size > 100 ? `Seed ${each.seed}` : String(i);
		tile.ariaPressed = String(i - 1 === seen);
		tile.ariaLabel = each ? `Variant ${i}, seed ${each.seed}` : "Source";
	});
}

// Pictures.

/** @param {File} file */
async function open(file) {
	warn("");
	try {
		const { picture, cut } = await opened(file);
		mask.clear();
		work(picture, cut || "Paint over what may change, or leave the mask empty to change anything.");
		stage.fit();
		canvas.focus({ preventScroll: true });
	} catch (e) {
		warn(words(e));
	}
}

/** @param {File} file */
async function loadMask(file) {
	try {
		await mask.load(file);
		stage.masked = true;
		refresh();
	} catch {
		warn("The mask is not a picture that this browser reads.");
	}
}

/** An error as a sentence. A failed fetch is a TypeError. @param {unknown} e */
function words(e) {
	const lost = "the server cannot be reached; is editar serve still running?";
	const said = e instanceof TypeError ? lost : String(e instanceof Error ? e.message : e);
	return said[0].toUpperCase() + said.slice(1) + (/[.?!]$/.test(said) ? "" : ".");
}

// Editing.

function settings() {
	const fields = Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, String(value).trim()]));
	return { ...fields, n: fields.n || "1" };
}

/** @param {Record<string, string>} wanted @param {Picture} picture @param {import("./mask.js").Bytes} masked @param {Above} [above] */
async function request(wanted, picture, masked, above) {
	const body = new FormData();
	for (const [name, value] of Object.entries(wanted)) if (value) body.set(name, value);
	body.set("partial_images", String(rows));
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
 * @param {Record<string, string>} wanted @param {Picture} picture @param {import("./mask.js").Bytes} masked @param {Above} [above]
 */
async function run(wanted, picture, masked, above) {
	const start = above?.row ?? 0;
	const variants = Array.from({ length: Number(wanted.n) }, () => {
		return /** @type {Variant} */ ({ seed: 0, row: start, picture: above?.picture ?? null, entry: null });
	});
	const mine = { source: picture, variants };
	const control = new AbortController();
	const begun = performance.now();
	running = control;
	warn("");
	say("Reading the picture…");
	see(0, mine);
	try {
		const body = await request(wanted, picture, masked, above);
		for await (const step of patiently(body, control.signal, say)) {
			const { variant: index, seed, row, done, tokens, warnings } = step;
			const each = variants[index];
			const fresh = await read(step.picture, picture.name);
			if (control.signal.aborted) break;
			each.picture = above ? await joined(above.picture, fresh, start, rows) : fresh;
			each.seed = seed;
			each.row = done ? rows : row;
			if (done) {
				const made = { id: `${Date.now()}-${index}`, seed, tokens, kept: false, name: picture.name, settings: wanted };
				each.entry = { ...made, picture: each.picture.file, source: picture.file, mask: masked, row: start };
				history.add(each.entry);
				if (warnings.length) warn(warnings.map(words).join(" "));
			} else say(`Row ${row} of ${rows}${variants.length > 1 ? `, variant ${index + 1}` : ""}`);
			if (shown === mine) refresh();
		}
		if (variants.some(({ entry }) => !entry)) throw new Error("the connection ended before the result");
		const [first, last] = [variants[0].seed, variants[variants.length - 1].seed];
		const seeds = first === last ? `seed ${first}` : `seeds ${first} to ${last}`;
		say(`Done in ${((performance.now() - begun) / 1000).toFixed(1)} s, ${seeds}`);
	} catch (e) {
		if (control.signal.aborted) say(`Stopped at row ${Math.max(...variants.map(({ row }) => row))} of ${rows}`);
		else {
			say("Not finished");
			warn(words(e));
		}
	} finally {
		running = null;
		if (shown === mine && variants.every((each) => !each.picture)) see(SOURCE, { source, variants: [] });
		refresh();
	}
}

function begin() {
	if (running) return;
	if (!source) warn("Open a picture first.");
	else if (form.reportValidity()) void run(settings(), source, mask.painted ? mask.now.slice() : new Uint8Array());
}

/** Draw the rows below the line again, with another seed. */
function reroll() {
	const now = variant();
	if (running || !now?.entry || !now.picture || !shown.source || line >= rows) return;
	const wanted = { ...now.entry.settings, n: input("n").value || "1", seed: "" };
	void run(wanted, shown.source, now.entry.mask, { entry: now.entry, picture: now.picture, row: line });
}

// History.

/** @param {Entry} entry */
async function showEntry(entry) {
	const [picture, from] = await Promise.all([read(entry.picture, entry.name), read(entry.source, entry.name)]);
	source ??= from;
	see(0, { source: from, variants: [{ seed: entry.seed, row: rows, picture, entry }] });
}

/** @param {Entry} entry */
async function use(entry) {
	/** @type {Record<string, string>} */
	const values = { ...entry.settings, seed: String(entry.seed), n: "1" };
	for (const field of form.elements) if ("value" in field && "name" in field) field.value = values[String(field.name)] ?? "";
	mask.set(entry.mask.length ? entry.mask.slice() : new Uint8Array(SIDE * SIDE));
	work(await read(entry.source, entry.name), "Picture, mask and settings are those of the result.");
}

// The row line.

const handle = block("row");
stage.onview = () => {
	const box = block("rowline");
	const below = rows - line;
	const { corner, scale } = stage;
	stage.kept = box.hidden ? 1 : line / rows;
	box.style.transform = `translate(${corner.x}px, ${corner.y + (line / rows) * scale}px)`;
	box.style.width = `${scale}px`;
	handle.ariaValueMin = "0";
	handle.ariaValueMax = String(rows);
	handle.ariaValueNow = String(line);
	handle.ariaValueText = `${below} of ${rows} rows are drawn again`;
	handle.dataset.hint = below ? "" : "Drag up to re-roll";
	button("reroll").hidden = !below;
	button("reroll").textContent = `Re-roll ${below} row${below === 1 ? "" : "s"} below`;
	block("fit").textContent = `${Math.round((100 * scale) / (source?.pixels.width ?? 1))} %`;
};

/** @param {number} to */
function moveLine(to) {
	line = Math.min(Math.max(Math.round(to), 0), rows);
	stage.draw();
}

handle.onpointerdown = (e) => handle.setPointerCapture(e.pointerId);
handle.onpointermove = (e) => {
	if (handle.hasPointerCapture(e.pointerId)) moveLine(stage.inside(stage.at(e)).y * rows);
};
handle.onkeydown = (e) => {
	const steps = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1, PageUp: -4, PageDown: 4, Home: -rows, End: rows };
	const step = steps[/** @type {keyof typeof steps} */ (e.key)];
	if (e.key === "Enter") reroll();
	else if (step) moveLine(line + step);
	else return;
	e.preventDefault();
};

// Controls.

function take(tool = "brush") {
	stage.tool = tool;
	for (const each of ["brush", "eraser", "hand"]) button(`tool-${each}`).ariaPressed = String(each === tool);
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
	const picture = now ? now.picture : source;
	if (picture) download(picture.file, `${picture.name.replace(/\.[^.]*$/, "")}${now ? `-${now.seed}` : ""}.png`);
}

function further() {
	const picture = variant()?.picture;
	if (picture) work(picture, "The result is now the source; the mask is still there.");
}

function compare(on = true) {
	if (comparing === on || !variant()) return;
	comparing = on;
	refresh();
}

function toggleMask() {
	stage.masked = !stage.masked;
	refresh();
}

function toggleBeside() {
	beside = !beside && shown.variants.length > 1;
	refresh();
}

mask.onchange = () => {
	button("undo").disabled = !mask.past.length;
	button("redo").disabled = !mask.future.length;
	button("mask-save").disabled = !mask.painted;
	block("masked").textContent = mask.painted ? `Mask ${Math.round(100 * mask.painted) || "<1"} %` : "No mask";
	stage.draw();
};
stage.onpaint = () => stage.masked || toggleMask();
history.onchange = () => (block("none").hidden = history.entries.length > 0);

const grow = (/** @type {number} */ factor) => resize(Number(input("size").value) * factor);
const choose = () => input("file").click();
const stop = () => running?.abort();
/** @type {import("./controls.js").Action[]} */
const actions = [
	["open", "o", choose],
	["choose", "", choose],
	["download", "s", save],
	["further", "", further],
	["beside", "g", toggleBeside],
	["stop", "", stop],
	["tool-brush", "b", () => take()],
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
	["", "c", compare],
];
connect({ actions, stage, mask, begin, stop, see: (i) => shown.variants[i] && see(i), compare, open, loadMask, resize });

async function start() {
	const model = await known();
	rows = model.rows;
	block("model").textContent = `${model.id} · ${model.size} × ${model.size} pixels · ${rows} rows`;
	input("n").max = String(model.variants);
	block("task").replaceChildren(...model.tasks.map((name) => new Option(name)));
	for (const [name, value] of Object.entries(model.defaults)) {
		const field = form.elements.namedItem(name);
		if (name !== "seed" && field instanceof HTMLInputElement) field.placeholder = String(value);
	}
}

mask.onchange();
refresh();
void history.restore();
start().catch((e) => warn(words(e)));
