/**
 * A mask: which pixels of the square may change, with undo, and as a file that the command line reads too.
 */

export const SIDE = 512;
const STEPS = 60;

/** @typedef {Uint8Array<ArrayBuffer>} Bytes */

export class Mask {
	constructor() {
		this.canvas = square();
		this.pen = context(this.canvas);
		/** @type {() => void} called after every finished change */
		this.onchange = () => {};
		/** @type {Bytes[]} */
		this.past = [];
		/** @type {Bytes[]} */
		this.future = [];
		/** @type {Bytes} */
		this.now = new Uint8Array(SIDE * SIDE);
		this.painted = 0;
		this.version = 0;
	}

	get empty() {
		return this.painted === 0;
	}

	/**
	 * Part of a stroke, in units of the square (0 to 1).
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
		this.set(this.now.map((_, i) => (data[4 * i + 3] >= 128 ? 255 : 0)));
	}

	/** Drop a stroke that is not finished. */
	cancel() {
		this.show();
	}

	/** @param {Bytes} next 255 where a pixel may change */
	set(next) {
		if (next.every((value, i) => value === this.now[i])) return this.show();
		this.past = [...this.past.slice(1 - STEPS), this.now];
		this.future = [];
		this.now = next;
		this.show();
	}

	undo() {
		this.travel(this.past, this.future);
	}

	redo() {
		this.travel(this.future, this.past);
	}

	/** @param {Bytes[]} from @param {Bytes[]} to */
	travel(from, to) {
		const next = from.pop();
		if (!next) return;
		to.push(this.now);
		this.now = next;
		this.show();
	}

	invert() {
		this.set(this.now.map((value) => 255 - value));
	}

	clear() {
		this.set(new Uint8Array(SIDE * SIDE));
	}

	show() {
		const image = new ImageData(SIDE, SIDE);
		let count = 0;
		this.now.forEach((value, i) => {
			image.data[4 * i + 3] = value;
			count += value && 1;
		});
		this.pen.putImageData(image, 0, 0);
		this.painted = count / (SIDE * SIDE);
		this.version++;
		this.onchange();
	}

	/** Read a file: transparent pixels may change if it has any, else white ones. @param {Blob} file */
	async load(file) {
		const pen = context(square());
		const picture = await createImageBitmap(file);
		const side = Math.min(picture.width, picture.height);
		const [x, y] = [(picture.width - side) / 2, (picture.height - side) / 2];
		pen.drawImage(picture, x, y, side, side, 0, 0, SIDE, SIDE);
		const { data } = pen.getImageData(0, 0, SIDE, SIDE);
		const clear = this.now.some((_, i) => data[4 * i + 3] < 128);
		const grey = (/** @type {number} */ i) => (data[i] * 299 + data[i + 1] * 587 + data[i + 2] * 114) / 1000;
		this.set(this.now.map((_, i) => ((clear ? data[4 * i + 3] < 128 : grey(4 * i) >= 128) ? 255 : 0)));
	}
}

/**
 * A grey PNG without alpha, white where the picture may change: what `editar edit --mask` and the server read.
 * @param {Uint8Array} mask SIDE × SIDE
 */
export async function maskFile(mask) {
	const lines = new Uint8Array((SIDE + 1) * SIDE); // Each begins with its filter, 0.
	for (let y = 0; y < SIDE; y++) lines.set(mask.subarray(y * SIDE, (y + 1) * SIDE), y * (SIDE + 1) + 1);
	const packed = new Blob([lines]).stream().pipeThrough(new CompressionStream("deflate"));
	const head = new Uint8Array(13);
	new DataView(head.buffer).setUint32(0, SIDE);
	new DataView(head.buffer).setUint32(4, SIDE);
	head[8] = 8; // bits; the color type 0 is grey
	const body = new Uint8Array(await new Response(packed).arrayBuffer());
	const parts = [chunk("IHDR", head), chunk("IDAT", body), chunk("IEND", new Uint8Array())];
	return new Blob([new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]), ...parts], { type: "image/png" });
}

/** @param {string} name @param {Uint8Array} data a chunk of a PNG */
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
	view.setUint32(data.length + 8, ~crc >>> 0);
	return bytes;
}

/** @param {number} [side] */
export function square(side = SIDE) {
	const canvas = document.createElement("canvas");
	canvas.width = canvas.height = side;
	return canvas;
}

/** @param {HTMLCanvasElement} canvas @returns {CanvasRenderingContext2D} */
export function context(canvas) {
	const made = canvas.getContext("2d", { willReadFrequently: true });
	if (!made) throw new Error("this browser cannot draw");
	return made;
}
