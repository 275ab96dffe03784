"""`editar info` and `editar verify`: the contents of a bundle, and its self-test."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

import editar_rt
from editar_rt.bundle.folder import Bundle
from editar_rt.cli.app import cli
from editar_rt.cli.options import bundle_argument, device_options, json_option
from editar_rt.errors import BackendError
from editar_rt.measure.memory import Need, engine_needs, memory_needs


@cli.command()
@bundle_argument
@click.option("--check", is_flag=True, help="Also hash every file and compare with the manifest.")
@json_option
def info(bundle: Path, check: bool, as_json: bool) -> None:
    """Show the contents of BUNDLE: parts, shapes, precision, sizes and hashes."""
    opened = Bundle.open(bundle)
    if check:
        opened.check()
    manifest = opened.manifest
    needs, engines = memory_needs(opened), engine_needs(opened)
    if as_json:
        document = manifest.to_dict() | {
            "fingerprint": opened.fingerprint,
            "checked": check,
            "memory": {device: _as_json(need) for device, need in needs.items()},
            "engines": {folder: _as_json(need) for folder, need in engines.items()},
        }
        click.echo(json.dumps(document))
        return
    model = manifest.model
    click.echo(f"{bundle}  format {manifest.format_version}  {manifest.precision}  dialect {manifest.dialect}")
    click.echo(f"fingerprint {opened.fingerprint}" + ("  all hashes checked" if check else ""))
    if model.image_size:
        click.echo(f"pictures     {model.image_size}×{model.image_size} pixels, {model.picture_tokens} tokens")
    if model.dim:
        click.echo(
            f"transformer  {model.layers} layers, {model.heads} heads, width {model.dim}, {model.vocab_size} tokens"
        )
    if model.text_dim:
        click.echo(f"text         {model.text_tokens} tokens, width {model.text_dim}")
    defaults = opened.default_sampling
    click.echo("sampling     " + ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(defaults).items()))
    for device, need in (needs | {f"the engines in {folder}": need for folder, need in engines.items()}).items():
        parts = (("weights", need.weights), ("cache", need.cache), ("activations", need.activations))
        listed = ", ".join(f"{what} {size / 1e6:.0f}" for what, size in parts)
        click.echo(f"memory       {device}: about {need.total / 1e6:.0f} MB ({listed})")
    for name, part in manifest.parts.items():
        size = opened.stored_bytes(name)
        count = model.parameters.get(name)
        parameters = f"  {count / 1e6:.2f} M parameters" if count is not None else ""
        click.echo(f"\n{name}  {size / 1e6:.2f} MB{parameters}")
        for label, tensors in (("in ", part.inputs), ("out", part.outputs)):
            shown = [t for t in tensors if not t.name.startswith(("past_key", "past_value", "present_"))]
            for t in shown:
                click.echo(f"  {label} {t.name} {t.dtype} {t.shape}")
            if len(shown) < len(tensors):
                click.echo(f"  {label} … and {len(tensors) - len(shown)} of the KV cache")
    click.echo("\nfiles")
    for name, file in manifest.files.items():
        click.echo(f"  {file.sha256}  {file.bytes:>12}  {name}")


def _as_json(need: Need) -> dict[str, int]:
    return dataclasses.asdict(need) | {"total": need.total}


@cli.command()
@bundle_argument
@device_options
@json_option
def verify(bundle: Path, device: str, threads: int | None, as_json: bool) -> None:
    """Check the outputs of BUNDLE. They must be the same here as on the machine that exported it."""
    from editar_rt.measure.selftest import batch_checks, other_version
    from editar_rt.measure.selftest import verify as run_self_test

    editor = editar_rt.load(bundle, device, threads)
    editor.bundle.check()
    checks = run_self_test(editor) + batch_checks(editor)
    holds = all(check.holds for check in checks)
    if as_json:
        listed = [check.to_json() for check in checks]
        click.echo(json.dumps({"backend": editor.backend.name, "holds": holds, "checks": listed}))
    else:
        for check in checks:
            verdict = "identical" if check.identical else "ok" if check.holds else "DIFFERS"
            click.echo(f"{check.part:12} {check.output:30} error {check.error:.1e}  bound {check.bound:.0e}  {verdict}")
    if not holds:
        failed = ", ".join(f"{c.part}: {c.output}" for c in checks if not c.holds)
        if exporters := other_version(editor):
            raise BackendError(
                f"{editor.backend.name} rounds the integers of this {editor.bundle.manifest.precision} bundle "
                f"differently from the exporter's version, {exporters} ({failed}), so that edits get other tokens; "
                f"run: pip install onnxruntime=={exporters}, or export the bundle again with this version"
            )
        raise BackendError(
            f"the outputs of {editor.backend.name} differ from those of the exporting machine ({failed}); "
            "try another --device, or export the bundle again on this machine"
        )
