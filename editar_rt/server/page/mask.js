/** A mask: which pixels of the square may change, with undo, and as a file that the command line reads too. */

export const SIDE = 512;
const STEPS = 60;

/** SIDE × SIDE, 255 where the picture may change. @typedef {Uint8Array<ArrayBuffer>} Bytes */

export class Mask {
	canvas = square();
	pen = context(this.canvas);
	/** After every finished change. */
	onchange = () => {};
	/** @type {Bytes[]} */
	past = [];
	/** @type {Bytes[]} */
	future = [];
	/** @type {Bytes} */
	now = new Uint8Array(SIDE * SIDE);
	painted = 0;
	version = 0;

	/**
	 * Part of a stroke, in units of the square.
	 * @param {{x: number, y: number}} from @param {{x: number, y: number}} to @param {number} width @param {boolean} erase
	 */
	stroke(from, to, width, erase) {
		const { pen } = this;
		pen.globalCompositeOperation = erase ? "destination-out" : "source-over";
		pen.lineCap = "round";
		pen.lineWidth = Math.max(1, width * SIDE);
		pen.beginPath();
		pen.moveTo(from.x * SIDE, from.y * SIDE);
		pen.lineTo(to.x * SIDE + 0.01, to.y * SIDE); // Length 0 would leave no dot.
		pen.stroke();
		this.version++;
	}

	/** End a stroke: it becomes one step of undo. */
	commit() {
		const { data } = this.pen.getImageData(0, 0, SIDE, SIDE);
		this.set(this.now.map((_, i) => (data[4 * i + 3] < 128 ? 0 : 255)));
	}

	/** @param {Bytes} next */
	set(next) {
		if (next.some((value, i) => value !== this.now[i])) {
			this.past = [...this.past.slice(1 - STEPS), this.now];
			this.future = [];
			this.now = next;
		}
		this.show();
	}

	undo(from = this.past, to = this.future) {
		const next = from.pop();
		if (!next) return;
		to.push(this.now);
		this.now = next;
		this.show();
	}

	redo() {
		this.undo(this.future, this.past);
	}

	invert() {
		this.set(this.now.map((value) => 255 - value));
	}

	clear() {
		this.set(new Uint8Array(SIDE * SIDE));
	}

	/** Draw the mask as it is, without a stroke that is not finished. */
	show() {
		const image = new ImageData(SIDE, SIDE);
		this.now.forEach((value, i) => (image.data[4 * i + 3] = value));
		this.pen.putImageData(image, 0, 0);
		this.painted = this.now.reduce((sum, value) => sum + value, 0) / 255 / this.now.length;
		this.version++;
		this.onchange();
	}

	/** Read a file: transparent pixels may change if it has any, else white ones. @param {Blob} file */
	async load(file) {
		const pen = context(square());
		const picture = await createImageBitmap(file);
		const side = Math.min(picture.width, picture.height);
		pen.drawImage(picture, (picture.width - side) / 2, (picture.height - side) / 2, side, side, 0, 0, SIDE, SIDE);
		const { data } = pen.getImageData(0, 0, SIDE, SIDE);
		const clear = this.now.map((_, i) => (data[4 * i + 3] < 128 ? 255 : 0));
		const grey = (/** @type {number} */ i) => 0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2];
		this.set(clear.includes(255) ? clear : clear.map((_, i) => (grey(4 * i) < 127.5 ? 0 : 255)));
	}
}

/** A grey PNG without alpha, as `editar edit --mask` and the server read it. @param {Bytes} mask */
export async function maskFile(mask) {
	const lines = new Uint8Array((SIDE + 1) * SIDE); // Each begins with its filter, 0.
	for (let y = 0; y < SIDE; y++) lines.set(mask.subarray(y * SIDE, (y + 1) * SIDE), y * (SIDE + 1) + 1);
	const packed = new Blob([lines]).stream().pipeThrough(new CompressionStream("deflate"));
	const head = new Uint8Array([0, 0, SIDE >> 8, 0, 0, 0, SIDE >> 8, 0, 8, 0, 0, 0, 0]); // 8 bits of grey
	const body = new Uint8Array(await new Response(packed).arrayBuffer());
	const parts = [chunk("IHDR", head), chunk("IDAT", body), chunk("IEND", new Uint8Array())];
	return new Blob([new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]), ...parts], { type: "image/png" });
}

/** @param {string} name @param {Uint8Array} data */
function chunk(name, data) {
	const bytes = new Uint8Array(data.length + 12);
	const view = new DataView(bytes.buffer);
	view.setUint32(0, data.length);
	bytes.set(new TextEncoder().encode(name), 4);
	bytes.set(data, 8);
	let crc = ~0;
	for (const byte of bytes.subarray(4, data.length + 8)) {
		crc ^= byte;
		for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
	}
	view.setUint32(data.length + 8, ~crc);
	return bytes;
}

export const square = (side = SIDE) => new OffscreenCanvas(side, side);

/** @param {OffscreenCanvas} canvas */
export function context(canvas) {
	const made = canvas.getContext("2d", { willReadFrequently: true });
	if (!made) throw new Error("this browser cannot draw");
	return made;
}
