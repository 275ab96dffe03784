/** The stage: draws the picture, the mask and the brush; turns mouse, touch, pen and keys into strokes and views. */
import { SIDE, context, square } from "./mask.js";

/** @typedef {{x: number, y: number}} Point */

const ROOM = 24; // pixels around a fitted picture

export class Stage {
	/** @type {CanvasImageSource | null} */
	picture = null;
	drawn = 1; // how much of the picture is finished; the rest is shown paler
	kept = 1; // how much of it the row line keeps
	masked = true;
	tool = "brush";
	width = 56 / SIDE; // of the brush
	scale = 1; // pixels of the square's side
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
	/** @type {{last: Point, paints: boolean, erase: boolean} | null} */
	gesture = null;
	frame = 0;
	tint = square();
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
		canvas.onpointerup = canvas.onpointercancel = (e) => this.up(e);
		canvas.onpointerleave = canvas.onblur = () => this.hover(null);
		canvas.oncontextmenu = (e) => e.preventDefault();
		canvas.onkeydown = (e) => this.key(e);
		canvas.addEventListener("wheel", (e) => this.wheel(e), { passive: false });
	}

	// The view.

	get box() {
		return this.canvas.getBoundingClientRect();
	}

	get fitting() {
		return Math.max(32, Math.min(this.box.width, this.box.height) - 2 * ROOM);
	}

	fit() {
		this.scale = this.fitting;
		this.corner = { x: (this.box.width - this.scale) / 2, y: (this.box.height - this.scale) / 2 };
		this.fitted = true;
		this.draw();
	}

	/** @param {number} factor */
	zoom(factor, { x, y } = { x: this.box.width / 2, y: this.box.height / 2 }) {
		const scale = Math.min(Math.max(this.scale * factor, this.fitting / 4), this.fitting * 40);
		const grown = scale / this.scale;
		this.corner = { x: x - (x - this.corner.x) * grown, y: y - (y - this.corner.y) * grown };
		this.scale = scale;
		this.pan(0, 0);
	}

	/** A part of the picture stays in sight. @param {number} x @param {number} y */
	pan(x, y) {
		const within = (/** @type {number} */ at, /** @type {number} */ size) =>
			Math.min(Math.max(at, 40 - this.scale), size - 40);
		this.corner = { x: within(this.corner.x + x, this.box.width), y: within(this.corner.y + y, this.box.height) };
		this.fitted = false;
		this.draw();
	}

	// Pointers.

	/** Pixels of the canvas. @param {MouseEvent} e */
	at(e) {
		return { x: e.clientX - this.box.left, y: e.clientY - this.box.top };
	}

	/** Units of the square. @param {Point} at */
	inside({ x, y }) {
		return { x: (x - this.corner.x) / this.scale, y: (y - this.corner.y) / this.scale };
	}

	/** @param {PointerEvent} e */
	down(e) {
		const at = this.at(e);
		this.canvas.setPointerCapture(e.pointerId);
		this.keyed = false;
		if (e.pointerType === "touch" && this.fingers.set(e.pointerId, at).size > 1) {
			if (this.gesture?.paints) this.mask.show();
			this.gesture = null;
		} else if (e.button === 1 || this.held || this.tool === "hand") {
			this.gesture = { last: at, paints: false, erase: false };
		} else {
			// A pen's other end and the right button erase.
			this.gesture = { last: this.inside(at), paints: true, erase: this.tool === "eraser" || [2, 5].includes(e.button) };
			this.onpaint();
			this.paint(e);
		}
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
		} else if (gesture?.paints) {
			const all = e.getCoalescedEvents?.() ?? [];
			for (const each of all.length ? all : [e]) this.paint(each);
		} else if (gesture) {
			this.pan(at.x - gesture.last.x, at.y - gesture.last.y);
			gesture.last = at;
		}
		this.hover(e.pointerType === "touch" ? null : this.inside(at));
	}

	/** @param {PointerEvent} e */
	up(e) {
		this.fingers.delete(e.pointerId);
		if (this.fingers.size || !this.gesture) return;
		if (this.gesture.paints) this.mask.commit();
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
		if (this.tool === "hand") return this.pan(-32 * x, -32 * y);
		const from = this.cursor ?? { x: 0.5, y: 0.5 };
		const step = e.altKey ? 1 / SIDE : this.width / 2;
		const clamp = (/** @type {number} */ value) => Math.min(Math.max(value, 0), 1);
		const to = { x: clamp(from.x + x * step), y: clamp(from.y + y * step) };
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

	render() {
		const pen = this.canvas.getContext("2d");
		const { scale, corner } = this;
		const moves = this.tool === "hand" || this.held;
		this.canvas.style.cursor = moves ? "grab" : "none";
		pen?.reset();
		if (!pen || !this.picture) return;
		pen.scale(devicePixelRatio, devicePixelRatio);
		pen.translate(corner.x, corner.y);
		pen.imageSmoothingQuality = "high";
		pen.imageSmoothingEnabled = scale < this.fitting * 3; // far in, pixels are pixels
		pen.drawImage(this.picture, 0, 0, scale, scale);
		const y = Math.min(this.drawn, this.kept) * scale;
		pen.fillStyle = "rgb(120 120 120 / 55%)";
		pen.fillRect(0, y, scale, scale - y);
		pen.fillStyle = "#fff";
		if (this.drawn < 1) pen.fillRect(0, y - 1, scale, 2);
		if (this.masked) pen.drawImage(this.colored(), 0, 0, scale, scale);
		if (this.cursor && (this.keyed || !moves)) this.outline(pen, this.cursor);
	}

	/** The brush: a light ring in a dark one shows on any picture. @param {CanvasRenderingContext2D} pen @param {Point} at */
	outline(pen, { x, y }) {
		pen.beginPath();
		pen.arc(x * this.scale, y * this.scale, Math.max(2, (this.width * this.scale) / 2), 0, 7);
		pen.setLineDash(this.tool === "eraser" ? [4, 3] : []);
		pen.lineWidth = 3;
		pen.strokeStyle = "rgb(0 0 0 / 60%)";
		pen.stroke();
		pen.lineWidth = 1.5;
		pen.strokeStyle = "#fff";
		pen.stroke();
	}

	/** The mask as stripes of two colors with a dark edge: one of them shows on any picture. */
	colored() {
		if (this.tinted === this.mask.version) return this.tint;
		this.tinted = this.mask.version;
		const [pen, mask, edge] = [context(this.tint), this.mask.canvas, square()];
		pen.reset();
		pen.drawImage(mask, 0, 0);
		pen.globalCompositeOperation = "source-in";
		pen.fillStyle = "rgb(255 58 122 / 46%)";
		pen.fillRect(0, 0, SIDE, SIDE);
		pen.globalCompositeOperation = "source-atop";
		pen.strokeStyle = "rgb(255 214 226 / 50%)";
		pen.lineWidth = 2.5;
		for (let x = -SIDE; x < SIDE; x += 12) {
			pen.moveTo(x, SIDE);
			pen.lineTo(x + SIDE, 0);
		}
		pen.stroke();
		const line = context(edge);
		for (let turn = 0; turn < 7; turn++) line.drawImage(mask, 1.6 * Math.cos(turn), 1.6 * Math.sin(turn));
		line.globalCompositeOperation = "destination-out";
		line.drawImage(mask, 0, 0);
		line.globalCompositeOperation = "source-in";
		line.fillStyle = "rgb(150 0 60 / 90%)";
		line.fillRect(0, 0, SIDE, SIDE);
		pen.globalCompositeOperation = "source-over";
		pen.drawImage(edge, 0, 0);
		return this.tint;
	}
}
