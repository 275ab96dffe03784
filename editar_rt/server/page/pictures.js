/** Pictures as the page holds them: square, as a file and as pixels. */
import { context, square } from "./mask.js";

const LARGEST = 1024; // the models see squares of at most 512 pixels

/** @typedef {{file: Blob, pixels: ImageBitmap, name: string}} Picture */

/**
 * The middle square of a file. A square file that the server reads is sent as it is.
 * @param {File} file @returns {Promise<{picture: Picture, cut: string}>}
 */
export async function opened(file) {
	const { name } = file;
	const whole = await createImageBitmap(file).catch(() => {
		throw new Error(`${name} is not a picture that this browser reads`);
	});
	const { width, height } = whole;
	const side = Math.min(width, height);
	if (width === height && side <= LARGEST && /png|jpeg|webp/.test(file.type)) {
		return { picture: { file, pixels: whole, name }, cut: "" };
	}
	const canvas = square(Math.min(side, LARGEST));
	const pen = context(canvas);
	pen.imageSmoothingQuality = "high";
	pen.drawImage(whole, (width - side) / 2, (height - side) / 2, side, side, 0, 0, canvas.width, canvas.width);
	const cut = width === height ? "" : `The middle square of ${width}×${height} pixels is edited.`;
	return { picture: await drawn(canvas, name), cut };
}

/** @param {OffscreenCanvas} canvas @param {string} name @returns {Promise<Picture>} */
async function drawn(canvas, name) {
	return { file: await canvas.convertToBlob(), pixels: canvas.transferToImageBitmap(), name };
}

/** @param {Blob} file @param {string} name @returns {Promise<Picture>} */
export async function read(file, name) {
	return { file, pixels: await createImageBitmap(file), name };
}

/**
 * The old picture above a line, the new one below it. They blend within a quarter of a row, since new tokens reach a
 * little beyond their own pixels.
 * @param {Picture} old @param {Picture} fresh @param {number} row @param {number} rows @returns {Promise<Picture>}
 */
export async function joined(old, fresh, row, rows) {
	const side = fresh.pixels.width;
	const canvas = square(side);
	const pen = context(canvas);
	pen.drawImage(fresh.pixels, 0, 0);
	const y = Math.round((row / rows) * side);
	const soft = Math.max(1, Math.round(side / rows / 4));
	for (let line = 0; line < y + soft && line < side; line++) {
		pen.globalAlpha = line < y ? 1 : 1 - (line - y + 1) / (soft + 1);
		pen.drawImage(old.pixels, 0, line, side, 1, 0, line, side, 1);
	}
	return drawn(canvas, fresh.name);
}

/** @param {Blob} file @param {string} name */
export function download(file, name) {
	const link = document.createElement("a");
	link.href = URL.createObjectURL(file);
	link.download = name;
	link.click();
	setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
