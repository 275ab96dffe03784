/** The row line: a result's rows above it are kept, and those below it drawn again. */
import { ui } from "./dom.js";
import { raster } from "./mask.js";
import { within } from "./stage.js";

export class RowLine {
	rows = 1; // of the model
	at = 0; // rows above it

	/** @param {import("./stage.js").Stage} stage @param {() => void} reroll */
	constructor(stage, reroll) {
		this.stage = stage;
		const { row } = ui;
		row.onpointerdown = (e) => row.setPointerCapture(e.pointerId);
		row.onpointermove = (e) => {
			const { place } = stage.scene ?? {};
			if (!place || !row.hasPointerCapture(e.pointerId)) return;
			this.move(((stage.inside(stage.at(e)).y - place.y) / place.height) * this.rows);
		};
		row.onkeydown = (e) => {
			const steps = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1, PageUp: -4, PageDown: 4, Home: -1e9, End: 1e9 };
			const step = steps[/** @type {keyof typeof steps} */ (e.key)];
			if (e.key === "Enter") reroll();
			else if (step) this.move(this.at + step);
			else return;
			e.preventDefault();
		};
	}

	/** Its first and last place: rows beside the picture are not seen. */
	get ends() {
		const { source, place } = this.stage.scene ?? {};
		if (!source || !place) return [0, this.rows];
		const row = (/** @type {number} */ y) => ((y - place.y) / place.height) * this.rows;
		return [Math.max(0, Math.floor(row(0))), Math.min(this.rows, Math.ceil(row(raster(source).height)))];
	}

	get below() {
		return this.ends[1] - this.at;
	}

	/** @param {number} to */
	move(to) {
		this.at = Math.round(to);
		this.stage.draw();
	}

	/** Lay it over the picture. */
	show() {
		const { corner, scale, size, scene } = this.stage;
		const [first, last] = this.ends;
		const at = (this.at = within(this.at, first, last));
		const { below } = this;
		this.stage.kept = ui.rowline.hidden || !below ? 1 : at / this.rows;
		if (scene) {
			const { x, y, width, height } = scene.place;
			const down = Math.min(y + (at / this.rows) * height, size.height);
			const { style } = ui.rowline;
			style.transform = `translate(${corner.x + Math.max(0, x) * scale}px, ${corner.y + down * scale}px)`;
			style.width = `${Math.min(width, size.width) * scale}px`;
		}
		const ariaValueText = `${below} of ${last - first} rows are drawn again`;
		Object.assign(ui.row, { ariaValueMin: first, ariaValueMax: last, ariaValueNow: at, ariaValueText });
		ui.row.dataset.hint = below ? "↕" : "Drag up to re-roll";
		ui.reroll.hidden = !below;
		ui.reroll.textContent = `Re-roll ${below} row${below === 1 ? "" : "s"} below`;
	}
}
