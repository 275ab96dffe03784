/** The page: one source picture and one mask are worked on; a run edits the source and has a result for each variant. */
import { connect } from "./controls.js";
import { make, ui } from "./dom.js";
import { History } from "./history.js";
import { Mask, raster } from "./mask.js";
import { known, patiently } from "./patience.js";
import { cut, download, joined, maskFile, paint, patched, placed, reached, read, whole } from "./pictures.js";
import { RowLine } from "./rowline.js";
import { Stage } from "./stage.js";

const SOURCE = -1;

const { canvas, form } = ui;
const mask = new Mask();
const stage = new Stage(canvas, mask);
const line = new RowLine(stage, reroll);
const history = new History(ui.history, { show: showEntry, use, warn });

/** @type {Model} */
let model = { id: "", bundle: "", size: 512, rows: 1, tasks: [], defaults: {}, limits: { n: 1 } };
/** @type {Picture | null} */
let source = null;
/** @type {Run | null} */
let shown = null;
/** @type {AbortController | null} */
let running = null;
let seen = SOURCE; // the variant on the stage, or the source
let comparing = false;
let beside = false;
let wishes = 0; // pictures that were asked for: a large one may be read after those that were asked for later

// What is shown.

const say = (/** @type {string} */ text) => ui.status.replaceChildren(text);
function warn(text = "") {
	ui.alert.replaceChildren(text);
}

const variant = () => shown?.variants[seen];

/** What is edited next. @param {Picture} source @returns {Scene} */
function scene(source) {
	return { source, place: placed(source, settings(), model.size), masked: mask.painted ? mask.now : new Uint8Array() };
}

/** Show a variant or the source, of another run if one is given. @param {number} index @param {Run | null} run */
function see(index, run = shown) {
	if (index !== seen || run !== shown) stage.masked = index === SOURCE;
	if (run !== shown) beside = false;
	shown = run;
	seen = index;
	line.at = Infinity;
	refresh();
}

/** Work on a picture. @param {Picture} picture @param {string} words */
function work(picture, words) {
	source = picture;
	see(SOURCE, null);
	say(words);
}

function refresh() {
	const now = variant();
	const finished = now?.entry && !beside;
	const square = !source || source.width === source.height;
	stage.show(now ? shown : source && scene(source));
	stage.patch = comparing ? null : (now?.patch ?? null);
	stage.drawn = !now || now.entry || comparing ? 1 : now.row / model.rows;
	stage.framed = !now && !square && settings().fit === "crop";
	const hidden = {
		empty: source,
		fits: now || square,
		at: !stage.framed,
		further: !finished,
		compare: !now || beside,
		beside: !shown?.variants[1],
		edit: running,
		stop: !running,
		rowline: !finished || running || comparing,
		sheet: !beside,
	};
	const { activeElement: focused } = document;
	for (const [id, hides] of Object.entries(hidden)) ui[id].hidden = Boolean(hides);
	if (focused === ui.edit && running) ui.stop.focus();
	if (focused === ui.stop && !running) ui.edit.focus();
	for (const id of ["canvas", "bar", "tools", "masked"]) ui[id].hidden = !source;
	ui.tools.inert = !stage.masks;
	ui.status.ariaBusy = String(Boolean(running));
	ui.download.disabled = !(now ? now.square : source);
	ui.beside.ariaPressed = String(beside);
	ui.see.ariaPressed = String(stage.masked);
	canvas.inert = beside;
	canvas.ariaLabel = now ? `Result with seed ${now.seed}, and mask` : "Source picture, and mask";
	tiles(ui.views, 40);
	if (beside) tiles(ui.sheet, 512);
	stage.draw();
}

/** A button for the source and for each variant. @param {HTMLElement} box @param {number} size */
function tiles(box, size) {
	const variants = shown?.variants ?? [];
	const wanted = source ? variants.length + 1 : 0;
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
		const each = variants[i - 1];
		const drawn = each ? shown : source && scene(source);
		const [small, text] = tile.children;
		if (!(small instanceof HTMLCanvasElement) || !drawn) return;
		const { width, height } = raster(drawn.source);
		const scale = size / Math.max(width, height);
		small.width = width * scale;
		small.height = height * scale;
		const pen = small.getContext("2d");
		if (pen) {
			pen.imageSmoothingQuality = "high";
			pen.globalAlpha = each && !each.patch ? 0.35 : 1;
			pen.scale(scale, scale);
			paint(pen, drawn, each?.patch);
		}
		text.textContent = !each ? "Source" : size > 100 ? `Seed ${each.seed}` : String(i);
		tile.ariaPressed = String(i - 1 === seen);
		tile.ariaLabel = each ? `Variant ${i}, seed ${each.seed}` : "Source";
	});
}

// Pictures.

/** @param {File} file */
async function open(file) {
	warn();
	const wish = ++wishes;
	try {
		const picture = await read(file, file.name);
		if (wish !== wishes) return;
		mask.reset(raster(picture));
		ui.at.value = "50";
		const { width, height } = picture;
		const square = width === height;
		work(picture, square ? PAINT : `${width} × ${height} pixels. The model sees the bright square: drag beside it to move it, or take the whole picture.`);
		stage.fit();
		canvas.focus({ preventScroll: true });
	} catch {
		warn(`This browser cannot read ${file.name} as a picture.`);
	}
}

const PAINT = "Paint over what may change, or leave the mask empty to change anything.";

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
	/** @type {Settings} */
	const fields = {};
	for (const [name, value] of new FormData(form)) fields[name] = String(value).trim();
	fields.n ||= "1";
	return fields;
}

/** @param {Settings} wanted @param {Scene} scene @param {Above} [above] */
async function request({ at, ...wanted }, scene, above) {
	const body = new FormData();
	for (const [name, value] of Object.entries(wanted)) if (value) body.set(name, value);
	body.set("partial_images", String(model.rows));
	if (above) {
		body.set("known_tokens", above.entry.tokens);
		body.set("from_row", String(above.row));
	}
	body.set("image", await cut(scene), "image");
	if (scene.masked.length) body.set("mask", await maskFile(scene), "mask.png");
	return body;
}

/**
 * Run an edit to its end, showing it row by row.
 * @param {Settings} wanted @param {Scene} scene @param {Above} [above]
 */
async function run(wanted, scene, above) {
	const start = above?.row ?? 0;
	const { source: picture, masked } = scene;
	const patch = above ? patched(scene, above.square.pixels) : null;
	const variants = Array.from({ length: Number(wanted.n) }, () => {
		return /** @type {Variant} */ ({ seed: 0, row: start, square: above?.square ?? null, patch, entry: null });
	});
	const mine = { ...scene, variants };
	const control = new AbortController();
	const begun = performance.now();
	running = control;
	warn();
	say("Reading the picture…");
	see(0, mine);
	ui.stage.scrollIntoView({ block: "nearest" });
	try {
		await meet(control.signal); // another model may be served by now
		if (above && above.entry.bundle !== model.bundle) throw new Error("another model made this result; edit it anew");
		const body = await request(wanted, scene, above);
		for await (const step of patiently(body, control.signal, say)) {
			const { variant: index, seed, row, done, tokens, bundle, warnings } = step;
			const each = variants[index];
			const fresh = await read(step.picture);
			if (control.signal.aborted) break;
			const square = above ? await joined(above.square, fresh, start, model.rows) : fresh;
			Object.assign(each, { seed, square, patch: patched(scene, square.pixels), row: done ? model.rows : row });
			if (done) {
				const made = { id: `${Date.now()}-${Math.random()}`, seed, tokens, bundle, kept: false, settings: wanted, masked };
				const { file, name } = picture;
				each.entry = { ...made, picture: square.file, source: file, name, size: raster(picture), row: start };
				history.add(each.entry);
				if (warnings.length) warn(warnings.map(words).join(" "));
			} else say(`Row ${row} of ${model.rows}${variants.length > 1 ? `, variant ${index + 1}` : ""}`);
			if (shown === mine) refresh();
		}
		if (variants.some(({ entry }) => !entry)) throw new Error("the connection ended before the result");
		const [first, last] = [variants[0].seed, variants[variants.length - 1].seed];
		const seeds = first === last ? `seed ${first}` : `seeds ${first} to ${last}`;
		say(`Done in ${((performance.now() - begun) / 1000).toFixed(1)} s, ${seeds}`);
	} catch (e) {
		const last = Math.max(...variants.map(({ row }) => row));
		if (control.signal.aborted) say(last > start ? `Stopped at row ${last} of ${model.rows}` : "Stopped");
		else {
			say("Not finished");
			warn(words(e));
		}
	} finally {
		running = null;
		if (shown === mine && variants.every((each) => !each.square)) see(SOURCE, null);
		refresh();
	}
}

function begin() {
	if (running) return;
	if (!source) warn("Open a picture first.");
	else if (mask.painted && !reached(scene(source))) warn("The mask is beside the bright square: move the square, or clear the mask.");
	else if (form.reportValidity()) void run(settings(), scene(source));
}

/** Draw the rows below the line again, with another seed. */
function reroll() {
	const now = variant();
	if (running || !now?.entry || !now.square || !shown || !line.below || !ui.n.reportValidity()) return;
	const wanted = { ...now.entry.settings, n: ui.n.value || "1", seed: "" };
	void run(wanted, shown, { entry: now.entry, square: now.square, row: line.at });
}

// History.

/** @param {Entry} entry @returns {Promise<Scene>} */
async function sceneOf(entry) {
	const from = source?.file === entry.source ? source : await read(entry.source, entry.name);
	return { source: from, place: placed(from, entry.settings, model.size), masked: entry.masked };
}

/** @param {Entry} entry */
async function showEntry(entry) {
	const wish = ++wishes;
	const [scene, square] = await Promise.all([sceneOf(entry), read(entry.picture)]);
	if (wish !== wishes) return;
	if (!source) {
		source = scene.source;
		mask.reset(raster(source));
	}
	const patch = patched(scene, square.pixels);
	see(0, { ...scene, variants: [{ seed: entry.seed, row: model.rows, square, patch, entry }] });
}

/** @param {Entry} entry */
async function use(entry) {
	const wish = ++wishes;
	const { source: from } = await sceneOf(entry);
	if (wish !== wishes) return;
	/** @type {Settings} */
	const values = { ...entry.settings, seed: String(entry.seed), n: "1" };
	for (const field of form.elements) {
		if (field instanceof HTMLInputElement && field.type === "radio") field.checked = field.value === values.fit;
		else if ("value" in field && "name" in field) field.value = values[String(field.name)] ?? "";
	}
	if (from !== source) mask.reset(raster(from));
	mask.set(entry.masked.length ? entry.masked : new Uint8Array(mask.now.length));
	work(from, "Picture, mask and settings are those of the result.");
}

// Controls.

stage.onview = () => {
	line.show();
	const { scale, size, scene } = stage;
	if (scene) ui.fit.textContent = `${Math.round((100 * scale * size.width) / scene.source.width)} %`;
};

function take(tool = "brush") {
	stage.tool = tool;
	for (const each of ["brush", "eraser", "hand"]) ui[`tool-${each}`].ariaPressed = String(each === tool);
	stage.draw();
}

/** @param {number} size */
function resize(size) {
	ui.size.value = String(size);
	stage.width = Number(ui.size.value);
	stage.draw();
}

/** Move what the model sees. @param {{x: number, y: number}} by */
stage.onframe = (by) => {
	const { width, height } = stage.size;
	const at = ui.at;
	at.value = String(Number(at.value) + (100 * (width > height ? by.x : by.y)) / Math.abs(width - height));
	refresh();
};

async function save() {
	const now = variant();
	if (!now && source) download(source.file, source.name);
	if (!now?.square || !shown) return;
	const name = `${shown.source.name.replace(/\.[^.]*$/, "")}-${now.seed}.png`;
	download(await whole(shown, now.square), name);
}

async function further() {
	const square = variant()?.square;
	if (!square || !shown) return;
	const wish = ++wishes;
	const picture = await read(await whole(shown, square), shown.source.name);
	if (wish === wishes) work(picture, "The result is now the source; the mask is still there.");
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
	beside = !beside && Boolean(shown?.variants[1]);
	refresh();
}

mask.onchange = () => {
	ui.undo.disabled = !mask.past.length;
	ui.redo.disabled = !mask.future.length;
	ui["mask-save"].disabled = !mask.painted;
	ui.masked.textContent = mask.painted ? `Mask ${Math.round(100 * mask.painted) || "<1"} %` : "No mask";
	stage.draw();
};
stage.onpaint = () => stage.masked || toggleMask();
history.onchange = () => (ui.none.hidden = history.entries.length > 0);

const grow = (/** @type {number} */ factor) => resize(Number(ui.size.value) * factor);
const choose = () => ui.file.click();
const stop = () => running?.abort();
/** @type {Action[]} */
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
	["mask-load", "", () => ui["mask-file"].click()],
	["mask-save", "", async () => download(await mask.file(), "mask.png")],
	["in", "+=", () => stage.zoom(1.25)],
	["out", "-", () => stage.zoom(0.8)],
	["fit", "0", () => stage.fit()],
	["reroll", "", reroll],
	["", "[", () => grow(0.8)],
	["", "]", () => grow(1.25)],
	["", "c", compare],
];
connect({ actions, stage, mask, begin, stop, see: (i) => shown?.variants[i] && see(i), compare, open, loadMask, resize });
ui.fits.oninput = refresh;
addEventListener("unhandledrejection", (e) => {
	e.preventDefault();
	warn(words(e.reason));
});

/** Learn what the server's model is. @param {AbortSignal} [signal] */
async function meet(signal) {
	const found = await known(signal);
	if (found.bundle === model.bundle) return;
	model = found;
	line.rows = model.rows;
	ui.model.textContent = `${model.id} · ${model.size} × ${model.size} pixels · ${model.rows} rows`;
	ui.n.max = String(model.limits.n);
	ui.task.replaceChildren(...model.tasks.map((name) => new Option(name)));
	for (const [name, value] of Object.entries(model.defaults)) {
		const field = form.elements.namedItem(name);
		if (name !== "seed" && field instanceof HTMLInputElement) field.placeholder = String(value);
	}
}

mask.onchange();
refresh();
void history.restore();
meet().catch((e) => warn(words(e)));
