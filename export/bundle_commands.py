"""What `edge-export` does with finished bundles, and its list of targets."""

from pathlib import Path

from edgelm.cli import format_bytes
from edgelm.errors import BadInput


def list_targets() -> None:
    """Print the known targets."""
    from edgelm.devices.profile import load_profiles

    for profile in load_profiles():
        print(f"{profile.name:<27} {profile.title}; {', '.join(profile.precisions)}")


def verify(folder: Path) -> None:
    """Check every hash of a bundle, its evaluation and its signature."""
    from edgelm.bundle import read_manifest, verify
    from edgelm.bundle.records.evaluation import check_evaluation
    from edgelm.bundle.signing.signature import check_signature

    manifest = read_manifest(folder)
    verify(folder, manifest)
    evaluation = check_evaluation(folder, manifest)
    signer = check_signature(folder, manifest)
    total = sum(entry.bytes for entry in manifest.files.values())
    print(f"{folder}: {len(manifest.files)} files, {format_bytes(total)}, all hashes match")
    if evaluation is not None:
        engine = f"{evaluation.subject.engine} {evaluation.subject.engine_version}"
        print(f"evaluated on {engine}, {evaluation.created}: {len(evaluation.tasks)} tasks")
    who = f"signed by {signer.name or 'a trusted key'}, {signer.fingerprint}" if signer else ""
    print(who or "not signed: hashes detect damage, not who made the bundle")


def print_manifest(folder: Path) -> None:
    """Print a bundle's manifest, JSON."""
    from edgelm.bundle import MANIFEST

    print((folder / MANIFEST).read_text(encoding="utf-8"), end="")


def sign(folder: Path, key: Path) -> None:
    """Sign a bundle with a key."""
    from edgelm.export.bundle.sign import sign_bundle

    public = sign_bundle(folder, key)
    print(f"{folder}: signed by {public.name}, {public.fingerprint}")
    print(f"to trust this key, add to ~/.config/edgelm/trusted-keys: {public.line}")


def trust(folder: Path) -> None:
    """Let a bundle's engines run on this machine."""
    from edgelm.bundle import read_manifest, verify
    from edgelm.runtime.engines.trust import trust

    manifest = read_manifest(folder)
    if not manifest.engines:
        raise BadInput(f"{folder} holds no compiled engine; nothing to trust")
    verify(folder, manifest)  # which also checks that every engine has an entry
    for engine in manifest.engines:
        for file in engine.files:
            trust(manifest.files[file].sha256)
            print(f"{folder / file} may run on this machine (compiled: {engine.machine})")
