"""The command `audit`: what is in files of training data, and what is suspicious about them."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arm_rl.core.config import ModelConfig, TemplateConfig
from arm_rl.core.errors import UserError
from arm_rl.core.template import Template
from arm_rl.data.parquet_rows import expand_folders, require_files
from arm_rl.prepare.formats import FORMATS
from arm_rl.prepare.progress import progress_bar
from jobs.command_line import Commands
from tools import load_tools

if TYPE_CHECKING:
    from arm_rl.prepare.audit.checks import Finding
    from arm_rl.prepare.audit.contents import FileContents


class AuditError(UserError):
    """Something is wrong with the data."""


def add_audit_command(commands: Commands) -> None:
    """Add the command that audits data."""
    parser = commands.add_parser(
        "audit",
        help="what is in files of training data, and what is suspicious",
        description="Told are leaks from training into held-out files (by text, and by how images look), duplicates, "
        "contradictions, labels or lengths that give the answer away, broken rows and images, and tool calls that cannot be carried out. "
        "The exit status is 1 where something is wrong, and 0 where nothing is worse than suspicious (with --strict: where nothing is).",
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="in any format of `convert`; a folder stands for its parquet files"
    )
    parser.add_argument(
        "--held-out", nargs="+", default=[], metavar="FILE", help="files that nothing of the others may stand in"
    )
    parser.add_argument("--read-as", choices=[*FORMATS], help="format of the files (default: by their names)")
    parser.add_argument(
        "--image-root", type=Path, help="folder that images may not leave (default: that of their file)"
    )
    parser.add_argument(
        "--tools",
        nargs="+",
        default=[],
        metavar="FILE",
        help="files that list the tools: calls are checked against them",
    )
    parser.add_argument("--model", metavar="FOLDER", help="count the prompts' tokens with this model's processor")
    parser.add_argument(
        "--system-prompt", default=TemplateConfig.system_prompt, metavar="FILE", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--max-prompt-tokens", type=int, default=65000, help="longer ones are told (default: %(default)s)"
    )
    parser.add_argument(
        "--near",
        type=int,
        default=12,
        metavar="BITS",
        help="of 256 that images which look alike may differ in (default: 12)",
    )
    parser.add_argument(
        "--ray",
        action="store_true",
        help="for many files: read several at a time with Ray Data, on the cluster that RAY_ADDRESS names, or on the cores of this machine",
    )
    parser.add_argument("--strict", action="store_true", help="what is suspicious is wrong")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there as well")
    parser.set_defaults(run=_run_audit)


def _run_audit(arguments: argparse.Namespace) -> str:
    require_files([*arguments.files, *arguments.held_out])
    from arm_rl.prepare.audit.checks import check
    from arm_rl.prepare.audit.contents import read

    schemas = {name: tool.schema for name, tool in load_tools(arguments.tools).items()}
    template = None
    if arguments.model is not None:
        template = Template.load(
            ModelConfig(path=arguments.model), TemplateConfig(system_prompt=arguments.system_prompt), schemas
        )
    training, held_out = expand_folders(arguments.files), expand_folders(arguments.held_out)
    how = {"read_as": arguments.read_as, "image_root": arguments.image_root, "schemas": schemas, "template": template}
    wanted = [partial(read, Path(file), held_out=file in held_out, **how) for file in [*training, *held_out]]
    contents = _read_with_ray(wanted) if arguments.ray else [_read_with_progress(one) for one in wanted]
    findings = check(contents, near=arguments.near, max_prompt_tokens=arguments.max_prompt_tokens)
    wrong = [finding for finding in findings if arguments.strict or finding.level == "wrong"]
    if arguments.json is not None:
        report = {
            "files": {str(one.path): one.summary() for one in contents},
            "findings": [dataclasses.asdict(finding) for finding in findings],
            "ok": not wrong,
        }
        arguments.json.write_text(json.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
    text = format_report(contents, findings)
    if wrong:
        raise AuditError(f"{len(wrong)} things are wrong\n{text}")
    return f"{text}\ndone: nothing is wrong; {len(findings)} suspicious" + (
        f"; {arguments.json}" if arguments.json else ""
    )


def _read_with_progress(wanted: "partial[FileContents]") -> "FileContents":
    (path,) = wanted.args
    with progress_bar(f"reading {path.name}", None, "rows") as step:
        return wanted(on_row=step)


def _read_with_ray(wanted: Sequence["partial[FileContents]"]) -> list["FileContents"]:
    """Read each file in a Ray task of its own; the results are in the files' order."""
    import ray.data

    from actors.cluster.connection import cluster

    def read_file(row: dict[str, Any]) -> dict[str, Any]:
        try:
            found: FileContents | UserError = wanted[row["number"]]()
        except UserError as error:
            found = error  # as it is: Ray would put its own around it
        return {"number": row["number"], "found": found}

    found: dict[int, FileContents] = {}
    with cluster(), progress_bar("reading", len(wanted), "files") as step:
        ray.data.DataContext.get_current().enable_progress_bars = False
        files = ray.data.from_items(
            [{"number": number} for number in range(len(wanted))], override_num_blocks=len(wanted)
        )
        for row in files.map(read_file).iter_rows():
            if isinstance(row["found"], UserError):
                raise row["found"]
            found[row["number"]] = row["found"]
            step()
    return [found[number] for number in range(len(wanted))]


def format_report(contents: Sequence["FileContents"], findings: Sequence["Finding"]) -> str:
    """Return the report as text."""
    lines = []
    for one in contents:
        lines.append(f"{one.path}")
        lines += [f"  {name.replace('_', ' ')}: {_format_value(value)}" for name, value in one.summary().items()]
    for finding in findings:
        lines.append(f"{finding.level}: {finding.what} ({finding.number}): {finding.message}")
        lines += [f"    {example}" for example in finding.examples]
    return "\n".join(lines)


def _format_value(value: object) -> str:
    return (
        ", ".join(f"{name} {number}" for name, number in value.items()) or "none"
        if isinstance(value, dict)
        else str(value)
    )
