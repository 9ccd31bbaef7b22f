"""The result of one check of the machine, and how results are printed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["ok", "warning", "fault"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of the doctor: what was looked at, what was found, and what to do about it."""

    name: str
    verdict: Verdict
    text: str
    advice: str = ""  # what to do; empty where nothing is to be done

    def as_json(self) -> dict[str, Any]:
        """Return the finding as JSON values."""
        return asdict(self)


def ok(name: str, text: str) -> Finding:
    """Return a finding that needs nothing to be done."""
    return Finding(name=name, verdict="ok", text=text)


def warning(name: str, text: str, advice: str) -> Finding:
    """Return a finding that limits what can be run here."""
    return Finding(name=name, verdict="warning", text=text, advice=advice)


def fault(name: str, text: str, advice: str) -> Finding:
    """Return a finding that a run will fail of."""
    return Finding(name=name, verdict="fault", text=text, advice=advice)


def format_findings(findings: Sequence[Finding]) -> str:
    """Return one line a finding, with the advice in a line of its own below."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.verdict:<7}  {finding.name:<{width}}  {finding.text}")
        if finding.advice:
            lines.append(f"{'':<7}  {'':<{width}}  -> {finding.advice}")
    return "\n".join(lines)
