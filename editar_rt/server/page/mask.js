/** A mask: which pixels of a picture may change, with undo, and as a file that the command line reads too. */

const SHORTER = 512; // side of a mask
const LONGER = 2048;
const STEPS = 60;


/** The size of a picture's mask. Its pixels are the units of the page. @param {Size} size @returns {Size} */
export function raster({ width, height }) {
	const scale = Math.min(SHORTER / Math.min(width, height), LONGER / Math.max(width, height));
	return { width: Math.round(width * scale) || 1, height: Math.round(height * scale) || 1 };
}

export class Mask {
	/** After every finished change. */
	onchange = () => {};
	canvas = new OffscreenCanvas(SHORTER, SHORTER);
	pen = context(this.canvas);
	/** @type {Bytes[]} */
	past = [];
	/** @type {Bytes[]} */
	future = [];
	/** @type {Bytes} */
	now = new Uint8Array(SHORTER * SHORTER);
	painted = 0; // share of the picture
	version = 0;

	get width() {
		return this.canvas.width;
	}

	get height() {
		return this.canvas.height;
	}

	/** Begin anew, for another picture. @param {Size} size */
	reset({ width, height }) {
		Object.assign(this.canvas, { width, height });
		this.past = [];
		this.future = [];
		this.now = new Uint8Array(width * height);
		this.show();
	}

	/**
	 * Part of a stroke.
	 * @param {Point} from @param {Point} to @param {number} width @param {boolean} erase
	 */
	stroke(from, to, width, erase) {
		const { pen } = this;
		pen.globalCompositeOperation = erase ? "destination-out" : "source-over";
		pen.strokeStyle = "#fff";
		pen.lineCap = "round";
		pen.lineWidth = Math.max(1, width);
		pen.beginPath();
		pen.moveTo(from.x, from.y);
		pen.lineTo(to.x + 0.01, to.y); // Length 0 would leave no dot.
		pen.stroke();
		this.version++;
	}

	/** End a stroke: it becomes one step of undo. */
	commit() {
		const { data } = this.pen.getImageData(0, 0, this.width, this.height);
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
		this.set(new Uint8Array(this.now.length));
	}

	/** Draw the mask as it is, without a stroke that is not finished. */
	show() {
		this.pen.putImageData(image(this.now, this), 0, 0);
		this.painted = this.now.reduce((sum, value) => sum + value, 0) / 255 / this.now.length;
		this.version++;
		this.onchange();
	}

	/** Read a file: transparent pixels may change if it has any, else white ones. @param {Blob} file */
	async load(file) {
		const { width, height } = this;
		const pen = context(new OffscreenCanvas(width, height));
		const picture = await createImageBitmap(file);
		const scale = Math.max(width / picture.width, height / picture.height);
		const [across, down] = [picture.width * scale, picture.height * scale];
		pen.drawImage(picture, (width - across) / 2, (height - down) / 2, across, down);
		const { data } = pen.getImageData(0, 0, width, height);
		const clear = this.now.map((_, i) => (data[4 * i + 3] < 128 ? 255 : 0));
		const grey = (/** @type {number} */ i) => 0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2];
		this.set(clear.includes(255) ? clear : clear.map((_, i) => (grey(4 * i) < 127.5 ? 0 : 255)));
	}

	/** A grey PNG without alpha, as `editar edit --mask` and the server read it. */
	async file() {
		const { width, height, now } = this;
		const lines = new Uint8Array((width + 1) * height); // Each begins with its filter, 0.
		for (let y = 0; y < height; y++) lines.set(now.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
		const packed = new Blob([lines]).stream().pipeThrough(new CompressionStream("deflate"));
		const head = new Uint8Array([0, 0, width >> 8, width, 0, 0, height >> 8, height, 8, 0, 0, 0, 0]); // 8 bits of grey
		const body = new Uint8Array(await new Response(packed).arrayBuffer());
		const parts = [chunk("IHDR", head), chunk("IDAT", body), chunk("IEND", new Uint8Array())];
		return new Blob([new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]), ...parts], { type: "image/png" });
	}
}

/** White pixels, and clear ones where the picture stays. @param {Bytes} mask @param {Size} size */
function image(mask, { width, height }) {
	const made = new ImageData(width, height);
	mask.forEach((value, i) => made.data.fill(value, 4 * i, 4 * i + 4));
	return made;
}

/** @param {Bytes} mask @param {Size} size */
export function sketch(mask, size) {
	const canvas = new OffscreenCanvas(size.width, size.height);
	context(canvas).putImageData(image(mask, size), 0, 0);
	return canvas;
}

/** @param {OffscreenCanvas} canvas */
export function context(canvas) {
	const made = canvas.getContext("2d", { willReadFrequently: true });
	if (!made) throw new Error("this browser cannot draw");
	made.imageSmoothingQuality = "high";
	return made;
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
