/**
 * The stage: draws the picture, the mask and the brush, and turns mouse, touch, pen and keys into strokes and views.
 * Positions are in units of the square, 0 to 1.
 */
import { SIDE, context, square } from "./mask.js";

/** @typedef {{x: number, y: number}} Point */
/** @typedef {import("./mask.js").Mask} Mask */

const ROOM = 24; // pixels around a fitted picture
const LARGEST = 40; // times the fitted size
const NOTCH = 50; // a wheel's notch moves by more pixels than a touchpad's event

export class Stage {
	/** @param {HTMLCanvasElement} canvas @param {Mask} mask */
	constructor(canvas, mask) {
		this.canvas = canvas;
		this.mask = mask;
		/** @type {CanvasImageSource | null} */
		this.picture = null;
		this.drawn = 1; // how much of the picture is finished; the rest is shown paler
		this.kept = 1; // how much of it the row line keeps
		this.masked = true;
		this.tool = "brush";
		this.width = 56 / SIDE; // of the brush
		this.scale = 1; // CSS pixels of the square's side
		this.fitted = true;
		/** @type {Point} */
		this.corner = { x: 0, y: 0 };
		/** @type {Point | null} */
		this.cursor = null;
		this.keyed = false; // whether the brush is moved by keys
		this.held = false; // whether Space is held
		/** @type {() => void} */
		this.onview = () => {};
		/** @type {() => void} */
		this.onpaint = () => {};
		/** @type {Map<number, Point>} */
		this.fingers = new Map();
		/** @type {{kind: "paint" | "pan", last: Point, erase: boolean} | null} */
		this.gesture = null;
		this.tint = square();
		this.tinted = -1;
		new ResizeObserver(() => this.resize()).observe(canvas);
		canvas.addEventListener("pointerdown", (e) => this.down(e));
		canvas.addEventListener("pointermove", (e) => this.move(e));
		for (const end of /** @type {const} */ (["pointerup", "pointercancel"])) {
			canvas.addEventListener(end, (e) => this.up(e));
		}
		canvas.addEventListener("pointerleave", () => this.hover(null));
		canvas.addEventListener("contextmenu", (e) => e.preventDefault());
		canvas.addEventListener("wheel", (e) => this.wheel(e), { passive: false });
		canvas.addEventListener("keydown", (e) => this.key(e));
		canvas.addEventListener("blur", () => this.hover(null));
	}

	// The view.

	resize() {
		const { canvas } = this;
		const { width, height } = canvas.getBoundingClientRect();
		canvas.width = Math.max(1, Math.round(width * devicePixelRatio));
		canvas.height = Math.max(1, Math.round(height * devicePixelRatio));
		if (this.fitted) this.fit();
		else this.draw();
	}

	get fitting() {
		const { width, height } = this.canvas.getBoundingClientRect();
		return Math.max(32, Math.min(width, height) - 2 * ROOM);
	}

	fit() {
		const { width, height } = this.canvas.getBoundingClientRect();
		this.scale = this.fitting;
		this.corner = { x: (width - this.scale) / 2, y: (height - this.scale) / 2 };
		this.fitted = true;
		this.draw();
	}

	/** @param {number} factor @param {Point} [about] in CSS pixels of the canvas */
	zoom(factor, about) {
		const { width, height } = this.canvas.getBoundingClientRect();
		const { x, y } = about ?? { x: width / 2, y: height / 2 };
		const scale = Math.min(Math.max(this.scale * factor, this.fitting / 4), this.fitting * LARGEST);
		const grown = scale / this.scale;
		this.corner = { x: x - (x - this.corner.x) * grown, y: y - (y - this.corner.y) * grown };
		this.scale = scale;
		this.pan(0, 0);
	}

	/** @param {number} x @param {number} y in CSS pixels; a part of the picture stays in sight */
	pan(x, y) {
		const { width, height } = this.canvas.getBoundingClientRect();
		const within = (/** @type {number} */ at, /** @type {number} */ size) =>
			Math.min(Math.max(at, Math.min(40, size) - this.scale), size - 40);
		this.corner = { x: within(this.corner.x + x, width), y: within(this.corner.y + y, height) };
		this.fitted = false;
		this.draw();
	}

	// Pointers.

	/** @param {MouseEvent} e @returns {Point} in CSS pixels of the canvas */
	at(e) {
		const { left, top } = this.canvas.getBoundingClientRect();
		return { x: e.clientX - left, y: e.clientY - top };
	}

	/** @param {Point} p @returns {Point} */
	inside(p) {
		return { x: (p.x - this.corner.x) / this.scale, y: (p.y - this.corner.y) / this.scale };
	}

	/** @param {PointerEvent} e */
	down(e) {
		if (!this.picture) return;
		const at = this.at(e);
		this.canvas.setPointerCapture(e.pointerId);
		this.keyed = false;
		if (e.pointerType === "touch") {
			this.fingers.set(e.pointerId, at);
			if (this.fingers.size > 1) {
				if (this.gesture?.kind === "paint") this.mask.cancel();
				this.gesture = null;
				return;
			}
		}
		if (e.button === 1 || this.held || this.tool === "hand") {
			this.gesture = { kind: "pan", last: at, erase: false };
			return;
		}
		// A pen's other end and the right button erase.
		const erase = this.tool === "eraser" || e.button === 2 || e.button === 5;
		this.gesture = { kind: "paint", last: this.inside(at), erase };
		this.onpaint();
		this.paint(e);
	}

	/** @param {PointerEvent} e */
	move(e) {
		const at = this.at(e);
		const before = this.fingers.get(e.pointerId);
		if (before && this.fingers.size === 2) {
			const [other] = [...this.fingers].filter(([id]) => id !== e.pointerId).map(([, point]) => point);
			const apart = (/** @type {Point} */ p) => Math.max(1, Math.hypot(p.x - other.x, p.y - other.y));
			this.zoom(apart(at) / apart(before), other);
			this.pan((at.x - before.x) / 2, (at.y - before.y) / 2);
			this.fingers.set(e.pointerId, at);
			return;
		}
		if (this.gesture?.kind === "pan") {
			this.pan(at.x - this.gesture.last.x, at.y - this.gesture.last.y);
			this.gesture.last = at;
		} else if (this.gesture) {
			const all = e.getCoalescedEvents?.() ?? [];
			for (const each of all.length ? all : [e]) this.paint(each);
		}
		this.hover(e.pointerType === "touch" ? null : this.inside(at));
	}

	/** @param {PointerEvent} e */
	up(e) {
		this.fingers.delete(e.pointerId);
		if (this.fingers.size || !this.gesture) return;
		if (this.gesture.kind === "paint") this.mask.commit();
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
		if (!at) this.keyed = false;
		this.draw();
	}

	/** A wheel zooms and a touchpad pans; pinching on one arrives with Ctrl. @param {WheelEvent} e */
	wheel(e) {
		if (!this.picture) return;
		e.preventDefault();
		const notched = e.deltaMode !== 0 || (e.deltaX === 0 && Math.abs(e.deltaY) >= NOTCH);
		if (e.shiftKey) this.pan(-(e.deltaX || e.deltaY), 0);
		else if (e.ctrlKey || notched) {
			const turned = Math.sign(e.deltaY) * Math.min(Math.abs(e.deltaY) * (e.deltaMode ? 30 : 1), 120);
			this.zoom(Math.exp(-turned * (e.ctrlKey && !notched ? 0.01 : 0.002)), this.at(e));
		} else this.pan(-e.deltaX, -e.deltaY);
	}

	// Keys on the canvas. Those of the tools work in the whole page: page.js.

	/** Arrow keys move the brush, or the view under the hand. @param {KeyboardEvent} e */
	key(e) {
		const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
		const way = ways[/** @type {keyof typeof ways} */ (e.key)];
		if (!this.picture || !(way || e.key === "Enter") || e.ctrlKey || e.metaKey) return;
		e.preventDefault();
		if (way && this.tool === "hand") return this.pan(-32 * way[0], -32 * way[1]);
		const from = this.cursor ?? { x: 0.5, y: 0.5 };
		const step = e.altKey ? 1 / SIDE : Math.max(this.width / 2, 2 / SIDE);
		const clamp = (/** @type {number} */ value) => Math.min(Math.max(value, 0), 1);
		const to = way ? { x: clamp(from.x + way[0] * step), y: clamp(from.y + way[1] * step) } : from;
		if (e.shiftKey || !way) {
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
		cancelAnimationFrame(this.frame ?? 0);
		this.frame = requestAnimationFrame(() => this.render());
	}

	render() {
		const pen = this.canvas.getContext("2d");
		if (!pen) return;
		const { scale, corner } = this;
		pen.setTransform(1, 0, 0, 1, 0, 0);
		pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
		this.canvas.style.cursor = this.picture ? (this.tool === "hand" || this.held ? "grab" : "none") : "default";
		if (!this.picture) return;
		pen.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
		pen.translate(corner.x, corner.y);
		pen.imageSmoothingQuality = "high";
		pen.imageSmoothingEnabled = scale < this.fitting * 3; // far in, pixels are pixels
		pen.drawImage(this.picture, 0, 0, scale, scale);
		const y = Math.min(this.drawn, this.kept) * scale;
		pen.fillStyle = "rgb(120 120 120 / 55%)";
		pen.fillRect(0, y, scale, scale - y);
		pen.fillStyle = "#fff";
		if (this.drawn < 1) pen.fillRect(0, y - 1, scale, 2);
		if (this.masked || this.gesture?.kind === "paint") pen.drawImage(this.colored(), 0, 0, scale, scale);
		if (this.cursor && (this.keyed || !(this.tool === "hand" || this.held))) this.outline(pen, this.cursor);
	}

	/** The brush: a light ring in a dark one, so that it shows on any picture. @param {CanvasRenderingContext2D} pen @param {Point} at */
	outline(pen, at) {
		for (const [width, color] of /** @type {const} */ ([[3, "rgb(0 0 0 / 60%)"], [1.5, "#fff"]])) {
			pen.beginPath();
			pen.arc(at.x * this.scale, at.y * this.scale, Math.max(2, (this.width * this.scale) / 2), 0, 7);
			pen.lineWidth = width;
			pen.strokeStyle = color;
			pen.setLineDash(this.tool === "eraser" ? [4, 3] : []);
			pen.stroke();
		}
		pen.setLineDash([]);
	}

	/** The mask in two colors as stripes with a dark edge: one of them shows on any picture. */
	colored() {
		if (this.tinted === this.mask.version) return this.tint;
		this.tinted = this.mask.version;
		const pen = context(this.tint);
		const mask = this.mask.canvas;
		pen.globalCompositeOperation = "source-over";
		pen.clearRect(0, 0, SIDE, SIDE);
		pen.drawImage(mask, 0, 0);
		pen.globalCompositeOperation = "source-in";
		pen.fillStyle = "rgb(255 58 122 / 46%)";
		pen.fillRect(0, 0, SIDE, SIDE);
		pen.globalCompositeOperation = "source-atop";
		pen.strokeStyle = "rgb(255 214 226 / 50%)";
		pen.lineWidth = 2.5;
		pen.beginPath();
		for (let x = -SIDE; x < SIDE; x += 12) {
			pen.moveTo(x, SIDE);
			pen.lineTo(x + SIDE, 0);
		}
		pen.stroke();
		const edge = square();
		const line = context(edge);
		for (let turn = 0; turn < 8; turn++) {
			line.drawImage(mask, 1.6 * Math.cos((turn * Math.PI) / 4), 1.6 * Math.sin((turn * Math.PI) / 4));
		}
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
