"""Write a model folder: `python -m layered_sglang.make_model PRESET DIR`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from layered_sglang.model_zoo import (
    PRESETS,
    FolderError,
    Preset,
    UnknownPresetError,
    WrittenModel,
    find_preset,
    write_model,
)
from layered_sglang.model_zoo.tensors import count_parameters


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    presets = "\n".join(f"  {preset.name:<15}{preset.summary}" for preset in PRESETS.values())
    parser = argparse.ArgumentParser(
        prog="python -m layered_sglang.make_model",
        description="Write a model folder for SGLang's --model-path.",
        epilog=f"presets:\n{presets}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("preset", metavar="PRESET", help="which model; see the list below")
    parser.add_argument("directory", metavar="DIR", type=Path, help="the folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default 0)")
    parser.add_argument("--force", action="store_true", help="write into a folder with files in it")
    return parser.parse_args(argv)


def describe(preset: Preset, written: WrittenModel) -> str:
    """Return what the command prints: what was written and how to serve it."""
    parameters = _short(count_parameters(preset.config).total)
    directory = shlex.quote(str(written.directory))
    serve = f"python -m layered_sglang.launch_server --model-path {directory}"
    lines = [
        f"wrote {preset.name} ({preset.summary}; {parameters} parameters) to {written.directory}"
    ]
    if preset.random_weights:
        lines.append(f"files: {', '.join(written.files)} ({written.bytes / 1e6:.1f} MB)")
    else:
        lines.append("files: config.json only, no weights and no tokenizer")
        serve += " --load-format dummy --skip-tokenizer-init"
    lines.append(f"serve: {serve}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, 2 where the request cannot be met."""
    args = parse_args(argv)
    try:
        preset = find_preset(args.preset)
        written = write_model(preset, args.directory, seed=args.seed, force=args.force)
    except (UnknownPresetError, FolderError) as error:
        print(f"make_model: {error}", file=sys.stderr)
        return 2
    print(describe(preset, written))
    return 0


def _short(count: int) -> str:
    """Return a count to three digits with its unit."""
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


if __name__ == "__main__":
    sys.exit(main())
