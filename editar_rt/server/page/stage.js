/** The stage: draws the picture, the mask and the brush; turns mouse, touch, pen and keys into strokes and views. */
import { context, raster } from "./mask.js";
import { paint } from "./pictures.js";

const ROOM = 24; // CSS pixels around a fitted picture

export const within = (value = 0, least = 0, most = 0) => Math.min(Math.max(value, least), most);

export class Stage {
	/** @type {Scene | null} */
	scene = null;
	/** What a result changes. @type {OffscreenCanvas | null} */
	patch = null;
	framed = false; // whether what the model sees is marked, and can be moved
	drawn = 1; // how much of the picture is finished; the rest is shown paler
	kept = 1; // how much of it the row line keeps
	masked = true;
	tool = "brush";
	width = 56; // of the brush
	scale = 1; // CSS pixels of a unit, which is a pixel of the mask
	fitted = true;
	corner = { x: 0, y: 0 };
	/** @type {Point | null} */
	cursor = null;
	keyed = false; // whether the brush is moved by keys
	held = false; // whether Space is held
	onview = () => {};
	/** @type {() => void} */
	onpaint = () => {};
	/** @type {Map<number, Point>} */
	fingers = new Map();
	/** @type {(by: Point) => void} */
	onframe = () => {};
	/** @type {{last: Point, does: "paint" | "pan" | "frame", erase: boolean} | null} */
	gesture = null;
	frame = 0;
	tint = new OffscreenCanvas(1, 1);
	tinted = -1;

	/** @param {HTMLCanvasElement} canvas @param {import("./mask.js").Mask} mask */
	constructor(canvas, mask) {
		this.canvas = canvas;
		this.mask = mask;
		new ResizeObserver(() => {
			canvas.width = Math.max(1, this.box.width * devicePixelRatio);
			canvas.height = Math.max(1, this.box.height * devicePixelRatio);
			if (this.fitted) this.fit();
			else this.draw();
		}).observe(canvas);
		canvas.onpointerdown = (e) => this.down(e);
		canvas.onpointermove = (e) => this.move(e);
		canvas.onpointerup = canvas.onpointercancel = canvas.onlostpointercapture = (e) => this.up(e);
		canvas.onpointerleave = canvas.onblur = () => this.hover(null);
		canvas.oncontextmenu = (e) => e.preventDefault();
		canvas.onkeydown = (e) => this.key(e);
		canvas.addEventListener("wheel", (e) => this.wheel(e), { passive: false });
	}

	// The view.

	get box() {
		return this.canvas.getBoundingClientRect();
	}

	/** Of the picture that is shown. */
	get size() {
		return this.scene ? raster(this.scene.source) : this.mask;
	}

	/** Whether the mask is one of the picture's size. */
	get masks() {
		return this.size.width === this.mask.width && this.size.height === this.mask.height;
	}

	get fitting() {
		const { width, height } = this.size;
		return Math.max(16, Math.min(this.box.width - 2 * ROOM, ((this.box.height - 2 * ROOM) * width) / height)) / width;
	}

	/** @param {Scene | null} scene */
	show(scene) {
		const { width, height } = this.size;
		this.scene = scene;
		if (this.size.width !== width || this.size.height !== height) this.fit();
	}

	fit() {
		this.scale = this.fitting;
		const { width, height } = this.size;
		this.corner = { x: (this.box.width - this.scale * width) / 2, y: (this.box.height - this.scale * height) / 2 };
		this.fitted = true;
		this.draw();
	}

	/** @param {number} factor */
	zoom(factor, { x, y } = { x: this.box.width / 2, y: this.box.height / 2 }) {
		const scale = within(this.scale * factor, this.fitting / 4, this.fitting * 40);
		const grown = scale / this.scale;
		this.corner = { x: x - (x - this.corner.x) * grown, y: y - (y - this.corner.y) * grown };
		this.scale = scale;
		this.pan(0, 0);
	}

	/** A part of the picture stays in sight. @param {number} x @param {number} y */
	pan(x, y) {
		const { box, corner, scale, size } = this;
		this.corner = {
			x: within(corner.x + x, 40 - scale * size.width, box.width - 40),
			y: within(corner.y + y, 40 - scale * size.height, box.height - 40),
		};
		this.fitted = false;
		this.draw();
	}

	// Pointers.

	/** CSS pixels of the canvas. @param {MouseEvent} e */
	at({ clientX, clientY }) {
		return { x: clientX - this.box.left, y: clientY - this.box.top };
	}

	/** Whether a point is beside what the model sees. @param {Point} at */
	beside({ x, y }) {
		const { place } = this.scene ?? {};
		return this.framed && place && (x < place.x || y < place.y || x > place.x + place.width || y > place.y + place.height);
	}

	/** Units of the picture. @param {Point} at */
	inside({ x, y }) {
		return { x: (x - this.corner.x) / this.scale, y: (y - this.corner.y) / this.scale };
	}

	/** @param {PointerEvent} e */
	down(e) {
		const at = this.at(e);
		this.canvas.setPointerCapture(e.pointerId);
		this.keyed = false;
		if (e.pointerType === "touch" && this.fingers.set(e.pointerId, at).size > 1) {
			if (this.gesture?.does === "paint") this.mask.show();
			this.gesture = null;
			return;
		}
		const does = e.button === 1 || this.moves ? "pan" : this.beside(this.inside(at)) ? "frame" : "paint";
		// A pen's other end and the right button erase.
		const erase = this.tool === "eraser" || [2, 5].includes(e.button);
		this.gesture = { last: does === "paint" ? this.inside(at) : at, does, erase };
		if (does !== "paint") return;
		this.onpaint();
		this.paint(e);
	}

	/** @param {PointerEvent} e */
	move(e) {
		const at = this.at(e);
		const before = this.fingers.get(e.pointerId);
		const { gesture } = this;
		if (before && this.fingers.size === 2) {
			const [other] = [...this.fingers].flatMap(([id, point]) => (id === e.pointerId ? [] : [point]));
			const apart = (/** @type {Point} */ p) => Math.max(1, Math.hypot(p.x - other.x, p.y - other.y));
			this.zoom(apart(at) / apart(before), other);
			this.pan((at.x - before.x) / 2, (at.y - before.y) / 2);
			this.fingers.set(e.pointerId, at);
		} else if (gesture?.does === "paint") {
			const all = e.getCoalescedEvents?.() ?? [];
			for (const each of all.length ? all : [e]) this.paint(each);
		} else if (gesture) {
			const by = { x: at.x - gesture.last.x, y: at.y - gesture.last.y };
			if (gesture.does === "pan") this.pan(by.x, by.y);
			else this.onframe({ x: by.x / this.scale, y: by.y / this.scale });
			gesture.last = at;
		}
		this.hover(e.pointerType === "touch" ? null : this.inside(at));
	}

	/** @param {PointerEvent} e */
	up(e) {
		this.fingers.delete(e.pointerId);
		if (this.fingers.size || !this.gesture) return;
		if (this.gesture.does === "paint") this.mask.commit();
		this.gesture = null;
		this.draw();
	}

	/** @param {PointerEvent} e */
	paint(e) {
		if (!this.gesture) return;
		const to = this.inside(this.at(e));
		const pressed = e.pointerType === "pen" && e.pressure ? 0.25 + e.pressure * 0.9 : 1;
		this.mask.stroke(this.gesture.last, to, this.width * pressed, this.gesture.erase);
		this.gesture.last = to;
		this.draw();
	}

	/** @param {Point | null} at */
	hover(at) {
		this.cursor = at;
		this.keyed &&= at !== null;
		this.draw();
	}

	/** A wheel zooms, by large steps; a touchpad pans, and its pinching arrives with Ctrl. @param {WheelEvent} e */
	wheel(e) {
		e.preventDefault();
		const notched = e.deltaMode !== 0 || (e.deltaX === 0 && Math.abs(e.deltaY) >= 50);
		if (e.shiftKey) this.pan(-(e.deltaX || e.deltaY), 0);
		else if (!e.ctrlKey && !notched) this.pan(-e.deltaX, -e.deltaY);
		else {
			const turned = Math.sign(e.deltaY) * Math.min(Math.abs(e.deltaY) * (e.deltaMode ? 30 : 1), 120);
			this.zoom(Math.exp(-turned * (notched ? 0.002 : 0.01)), this.at(e));
		}
	}

	/** Arrow keys move the brush, or the view under the hand. @param {KeyboardEvent} e */
	key(e) {
		const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Enter: [0, 0] };
		const [x, y] = ways[/** @type {keyof typeof ways} */ (e.key)] ?? [];
		if (x === undefined || e.ctrlKey || e.metaKey) return;
		e.preventDefault();
		if (this.moves) return this.pan(-32 * x, -32 * y);
		const { width, height } = this.size;
		const { place } = this.scene ?? { place: { x: 0, y: 0, width, height } };
		const from = this.cursor ?? { x: place.x + place.width / 2, y: place.y + place.height / 2 };
		const step = e.altKey ? 1 : this.width / 2;
		const to = { x: within(from.x + x * step, 0, width), y: within(from.y + y * step, 0, height) };
		if (e.shiftKey || e.key === "Enter") {
			this.onpaint();
			this.mask.stroke(from, to, this.width, this.tool === "eraser");
			this.mask.commit();
		}
		this.keyed = true;
		this.hover(to);
	}

	// Drawing.

	draw() {
		this.onview();
		cancelAnimationFrame(this.frame);
		this.frame = requestAnimationFrame(() => this.render());
	}

	get moves() {
		return this.tool === "hand" || this.held || !this.masks;
	}

	render() {
		const pen = this.canvas.getContext("2d");
		const { scale, corner, scene, cursor, moves } = this;
		const { width, height } = this.size;
		const off = cursor && !this.keyed && this.beside(cursor);
		this.canvas.style.cursor = moves || off ? "grab" : "none";
		pen?.reset();
		if (!pen || !scene) return;
		const { place } = scene;
		pen.scale(devicePixelRatio, devicePixelRatio);
		pen.translate(corner.x, corner.y);
		pen.scale(scale, scale);
		pen.beginPath();
		pen.rect(0, 0, width, height);
		pen.save();
		pen.clip();
		pen.imageSmoothingQuality = "high";
		// Far in, pixels are pixels.
		pen.imageSmoothingEnabled = scale < this.fitting * 3 || scale * width < 3 * scene.source.width;
		paint(pen, scene, this.patch);
		const y = place.y + Math.min(this.drawn, this.kept) * place.height;
		pen.fillStyle = "rgb(120 120 120 / 55%)";
		pen.fillRect(place.x, y, place.width, place.y + place.height - y);
		pen.fillStyle = "#fff";
		if (this.drawn < 1) pen.fillRect(place.x, y - 1 / scale, place.width, 2 / scale);
		if (this.masked && this.masks) pen.drawImage(this.colored(), 0, 0);
		if (this.framed) {
			pen.rect(place.x, place.y, place.width, place.height);
			pen.fillStyle = "rgb(20 20 22 / 62%)";
			pen.fill("evenodd");
			pen.strokeStyle = "#fff";
			pen.lineWidth = 2 / scale;
			pen.strokeRect(place.x, place.y, place.width, place.height);
		}
		pen.restore();
		if (cursor && (this.keyed || !(moves || off))) this.outline(pen, cursor);
	}

	/** The brush: a light ring in a dark one shows on any picture. @param {CanvasRenderingContext2D} pen @param {Point} at */
	outline(pen, { x, y }) {
		pen.beginPath();
		const unit = 1 / this.scale;
		pen.arc(x, y, Math.max(2 * unit, this.width / 2), 0, 7);
		pen.setLineDash(this.tool === "eraser" ? [4 * unit, 3 * unit] : []);
		pen.lineWidth = 3 * unit;
		pen.strokeStyle = "rgb(0 0 0 / 60%)";
		pen.stroke();
		pen.lineWidth = 1.5 * unit;
		pen.strokeStyle = "#fff";
		pen.stroke();
	}

	/** The mask as stripes of two colors with a dark edge: one of them shows on any picture. */
	colored() {
		if (this.tinted === this.mask.version) return this.tint;
		this.tinted = this.mask.version;
		const { width, height, canvas: mask } = this.mask;
		const [tint, edge] = [0, 1].map(() => new OffscreenCanvas(width, height));
		const pen = context(tint);
		pen.drawImage(mask, 0, 0);
		pen.globalCompositeOperation = "source-in";
		pen.fillStyle = "rgb(255 58 122 / 46%)";
		pen.fillRect(0, 0, width, height);
		pen.globalCompositeOperation = "source-atop";
		pen.strokeStyle = "rgb(255 214 226 / 50%)";
		pen.lineWidth = 2.5;
		for (let x = -height; x < width; x += 12) {
			pen.moveTo(x, height);
			pen.lineTo(x + height, 0);
		}
		pen.stroke();
		const line = context(edge);
		for (let turn = 0; turn < 7; turn++) line.drawImage(mask, 1.6 * Math.cos(turn), 1.6 * Math.sin(turn));
		line.globalCompositeOperation = "destination-out";
		line.drawImage(mask, 0, 0);
		line.globalCompositeOperation = "source-in";
		line.fillStyle = "rgb(150 0 60 / 90%)";
		line.fillRect(0, 0, width, height);
		pen.globalCompositeOperation = "source-over";
		pen.drawImage(edge, 0, 0);
		return (this.tint = tint);
	}
}
