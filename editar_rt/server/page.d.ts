/** The types of the page's modules, for the checker alone: browsers do not load them. */

type Bytes = Uint8Array<ArrayBuffer>;
type Settings = Record<string, string>;
type Pen = CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D;

interface Point {
	x: number;
	y: number;
}

interface Size {
	width: number;
	height: number;
}

/** `pixels` are the file's, or fewer. */
interface Picture extends Size {
	file: Blob;
	name: string;
	pixels: ImageBitmap;
}

/** Where the model's square lies, in pixels of the picture's mask. Beyond the picture it is padded. */
interface Place extends Point, Size {}

/** What is edited. */
interface Scene {
	source: Picture;
	place: Place;
	/** 255 where the picture may change, line by line; empty without a mask. */
	masked: Bytes;
}

/** One result of a run. */
interface Variant {
	seed: number;
	/** Rows that are drawn. */
	row: number;
	/** The model's square so far. */
	square: Picture | null;
	/** What the square changes of the picture. */
	patch: OffscreenCanvas | null;
	entry: Entry | null;
}

interface Run extends Scene {
	variants: Variant[];
}

/** A result in the history. */
interface Entry {
	id: string;
	seed: number;
	tokens: string;
	bundle: string;
	kept: boolean;
	name: string;
	settings: Settings;
	/** The model's square. */
	picture: Blob;
	source: Blob;
	/** Of the mask. */
	size: Size;
	masked: Bytes;
	/** The rows above it came from an earlier result; 0 for a whole edit. */
	row: number;
}

/** The result whose rows above a line are kept. */
interface Above {
	entry: Entry;
	square: Picture;
	row: number;
}

interface Model {
	id: string;
	bundle: string;
	size: number;
	rows: number;
	tasks: string[];
	defaults: Record<string, unknown>;
	limits: { n: number };
}

/** A partial picture, or a result. */
interface Step {
	done: boolean;
	picture: Blob;
	variant: number;
	seed: number;
	row: number;
	tokens: string;
	bundle: string;
	warnings: string[];
}

/** A button's id or "", the keys that do the same, and what that is. */
type Action = [id: string, keys: string, does: () => void];

/** What controls do. */
interface Controls {
	actions: Action[];
	stage: { held: boolean; draw: () => void };
	mask: { undo: () => void; redo: () => void };
	begin: () => void;
	stop: () => void;
	see: (variant: number) => void;
	compare: (on: boolean) => void;
	open: (file: File) => void;
	loadMask: (file: File) => void;
	resize: (size: number) => void;
}

/** The page's elements by their ids. */
type Elements = Record<
	| "alert" | "bar" | "empty" | "fits" | "history" | "masked" | "model" | "none" | "row" | "rowline" | "sheet" | "stage"
	| "status" | "tools" | "views" | "go" | "ask-title",
	HTMLElement
> &
	Record<
		| "beside" | "compare" | "download" | "edit" | "fit" | "mask-save" | "redo" | "reroll" | "see" | "stop"
		| "undo",
		HTMLButtonElement
	> &
	Record<"at" | "file" | "key" | "mask-file" | "n" | "size", HTMLInputElement> & {
		ask: HTMLDialogElement;
		canvas: HTMLCanvasElement;
		form: HTMLFormElement;
		task: HTMLSelectElement;
		[id: string]: HTMLElement;
	};
