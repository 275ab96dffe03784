/** Pictures, what the model sees of them, and results in their place. Lengths are in pixels of a picture's mask. */
import { context, raster, sketch } from "./mask.js";

const MOST_SENT = 1024; // the models see at most 512 pixels
const MOST_SHOWN = 4096;
const SEAM = 1 / 16; // of the square's side, as images/fit.py has it

/** @param {Blob} file @returns {Promise<Picture>} */
export async function read(file, name = "") {
	const whole = await createImageBitmap(file);
	const { width, height } = whole;
	const scale = Math.min(1, MOST_SHOWN / Math.max(width, height));
	const { canvas, pen } = paper(Math.ceil(width * scale), Math.ceil(height * scale));
	pen.drawImage(whole, 0, 0, canvas.width, canvas.height);
	whole.close();
	return { file, name, width, height, pixels: canvas.transferToImageBitmap() };
}

/** A white canvas: the server, too, blends what is transparent over white. @param {number} width @param {number} height */
function paper(width, height) {
	const canvas = new OffscreenCanvas(width, height);
	const pen = context(canvas);
	pen.fillStyle = "#fff";
	pen.fillRect(0, 0, width, height);
	return { canvas, pen };
}

/**
 * Where the model's square lies: over all of a picture (`pad`), or over a part of full height or width. The server pads
 * by whole pixels of the model.
 * @param {Picture} picture @param {Settings} settings @param {number} pixels @returns {Place}
 */
export function placed(picture, { fit, at }, pixels) {
	const all = raster(picture);
	const side = Math.min(all.width, all.height);
	const along = (/** @type {number} */ length) => {
		if (fit !== "pad") return [((length - side) * Number(at || 50)) / 100, side];
		const scaled = Math.round((length / Math.max(all.width, all.height)) * pixels) || 1;
		return [Math.floor((scaled - pixels) / 2) * (length / scaled), pixels * (length / scaled)];
	};
	const [[x, width], [y, height]] = [along(all.width), along(all.height)];
	return { x, y, width, height };
}

/** A canvas of what the model sees, and a pen in the picture's units. @param {Scene} scene @param {number} scale */
function part({ source, place }, scale) {
	const all = raster(source);
	const [width, height] = [Math.min(place.width, all.width), Math.min(place.height, all.height)];
	const { canvas, pen } = paper(Math.round(width * scale) || 1, Math.round(height * scale) || 1);
	pen.scale(canvas.width / width, canvas.height / height);
	pen.translate(Math.min(0, -place.x), Math.min(0, -place.y));
	return { canvas, pen };
}

/** What the model sees, as a file. @param {Scene} scene */
export async function cut(scene) {
	const { file, width, height, pixels } = scene.source;
	const all = raster(scene.source);
	const uncut = scene.place.width >= all.width && scene.place.height >= all.height;
	if (uncut && Math.max(width, height) <= MOST_SENT && /png|jpeg|webp/.test(file.type)) return file;
	const { canvas, pen } = part(scene, Math.min(pixels.width / all.width, MOST_SENT / scene.place.width));
	paint(pen, scene);
	return canvas.convertToBlob();
}

/** Whether the model sees any of the mask. @param {Scene} scene */
export function reached({ source, place: { x, y, width, height }, masked }) {
	const across = raster(source).width;
	return masked.some((value, i) => {
		const [right, down] = [(i % across) + 0.5 - x, Math.floor(i / across) + 0.5 - y];
		return value && right > 0 && right < width && down > 0 && down < height;
	});
}

/** The mask of what the model sees, as a file: transparent where the picture may change. @param {Scene} scene */
export function maskFile(scene) {
	const { canvas, pen } = part(scene, 1);
	pen.globalCompositeOperation = "destination-out";
	pen.drawImage(sketch(scene.masked, raster(scene.source)), 0, 0);
	return canvas.convertToBlob();
}

/**
 * What a result changes: its square, fading out where the picture goes on, and under the mask alone if the picture is
 * finer than the result.
 * @param {Scene} scene @param {ImageBitmap} result
 */
export function patched({ source, place: { x, y, width, height }, masked }, result) {
	const all = raster(source);
	const finer = masked.length && width * source.width > result.width * all.width;
	const side = finer ? Math.max(512, result.width) : result.width;
	const canvas = new OffscreenCanvas(side, side);
	const pen = context(canvas);
	pen.drawImage(result, 0, 0, side, side);
	pen.globalCompositeOperation = "destination-in";
	for (const [start, end, across] of [[x, all.width - width - x, side], [y, all.height - height - y, 0]]) {
		const ramp = pen.createLinearGradient(0, 0, across, side - across);
		const stops = [[0, start > 0.5 ? 0 : 1], [SEAM, 1], [1 - SEAM, 1], [1, end > 0.5 ? 0 : 1]];
		for (const [at, alpha] of stops) ramp.addColorStop(at, `rgb(0 0 0 / ${alpha})`);
		pen.fillStyle = ramp;
		pen.fillRect(0, 0, side, side);
	}
	pen.scale(side / width, side / height);
	if (finer) pen.drawImage(sketch(masked, all), -x, -y);
	return canvas;
}

/**
 * Draw a picture, and what a result changes of it.
 * @param {Pen} pen @param {Scene} scene
 * @param {OffscreenCanvas | null} [patch] @param {ImageBitmap} [pixels]
 */
export function paint(pen, { source, place }, patch, pixels = source.pixels) {
	const { width, height } = raster(source);
	pen.drawImage(pixels, 0, 0, width, height);
	if (patch) pen.drawImage(patch, place.x, place.y, place.width, place.height);
}

/**
 * The whole picture with a result, in its own size, or a larger one if the result has more pixels.
 * @param {Scene} scene @param {Picture} result
 */
export async function whole(scene, result) {
	const { file, width, height } = scene.source;
	if (width === height && width === result.width) return result.file;
	const all = raster(scene.source);
	const grown = Math.max(1, (result.width * all.width) / (scene.place.width * width));
	const { canvas, pen } = paper(Math.round(width * grown), Math.round(height * grown));
	pen.scale(canvas.width / all.width, canvas.height / all.height);
	paint(pen, scene, patched(scene, result.pixels), await createImageBitmap(file));
	return told(canvas, result.file);
}

/** A canvas as a PNG with the texts of a result's: how it was made. @param {OffscreenCanvas} canvas @param {Blob} result */
async function told(canvas, result) {
	const [made, own] = await Promise.all([await canvas.convertToBlob(), result].map((file) => file.arrayBuffer()));
	const view = new DataView(own);
	const texts = [];
	for (let start = 8, end; start + 12 <= own.byteLength; start = end) {
		end = start + 12 + view.getUint32(start);
		const kind = new TextDecoder().decode(own.slice(start + 4, start + 8));
		if (["tEXt", "iTXt", "zTXt"].includes(kind)) texts.push(own.slice(start, end));
	}
	const head = 33; // bytes of the signature and the first chunk
	return new Blob([made.slice(0, head), ...texts, made.slice(head)], { type: "image/png" });
}

/**
 * The old square above a line, the new one below it. They blend within a quarter of a row, since new tokens reach a
 * little beyond their own pixels. Two lines more are old: what enlarges the square mixes them with those above.
 * @param {Picture} old @param {Picture} fresh @param {number} row @param {number} rows
 */
export async function joined(old, fresh, row, rows) {
	const side = fresh.width;
	const { canvas, pen } = paper(side, side);
	pen.drawImage(fresh.pixels, 0, 0);
	const y = Math.round((row / rows) * side) + 2;
	const soft = Math.max(1, Math.round(side / rows / 4));
	for (let line = 0; line < y + soft && line < side; line++) {
		pen.globalAlpha = line < y ? 1 : 1 - (line - y + 1) / (soft + 1);
		pen.drawImage(old.pixels, 0, line, side, 1, 0, line, side, 1);
	}
	return read(await told(canvas, fresh.file));
}

/** @param {Blob} file @param {string} name */
export function download(file, name) {
	const link = document.createElement("a");
	link.href = URL.createObjectURL(file);
	link.download = name;
	link.click();
	setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
