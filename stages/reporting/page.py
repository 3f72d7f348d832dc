"""report/index.html, report/report.md and report/main.svg from an analysis.

index.html is one file that refers to no other: style, script and pictures are inside. Whatever came from
params, models or generated text passes through jinja2's escaping; only our own SVG and CSS are trusted.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2

from stages.common.files import write_text
from stages.reporting import evidence, facts, figures, grids, prose, theme
from stages.reporting.analysis import Analysis
from stages.reporting.decode import token_decoder
from stages.reporting.verdict import Verdict

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"


def write_pages(folder: Path, analysis: Analysis, verdict: Verdict, drawn: dict[str, figures.Figure]) -> None:
    """Write the three files; main.svg only where there is a speedup to show."""
    view = _view(analysis, verdict, drawn)
    write_text(folder / "index.html", _environment(html=True).get_template("index.html.j2").render(view))
    write_text(folder / "report.md", _environment(html=False).get_template("report.md.j2").render(view))
    if "speedup" in drawn:
        write_text(folder / "main.svg", figures.standalone(drawn["speedup"], drawn["speedup"].alt))
    else:
        (folder / "main.svg").unlink(missing_ok=True)


def _environment(html: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"line": _markdown_line, "code": _markdown_code}
    return environment


def _markdown_line(text: Any) -> str:
    """One line of plain text: no HTML, no table bar, no link or image of its own."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", " ".join(str(text).split())).replace("<", "&lt;")


def _markdown_code(text: Any) -> str:
    return "`" + " ".join(str(text).split()).replace("`", "'") + "`"


def _view(analysis: Analysis, verdict: Verdict, drawn: dict[str, figures.Figure]) -> dict[str, Any]:
    """Everything the two templates name."""
    run, best = analysis.run, verdict.best
    found = [r.losslessness for one in analysis.every for r in one.results.values() if r.losslessness]
    return {
        "verdict": verdict,
        "banners": list(prose.banners(analysis)),
        "rivals": ", ".join(result.name.label for result in analysis.rivals(best)) if best else "",
        "device": facts.device_of(analysis),
        "context": facts.context_of(analysis),
        "level": f"{analysis.bootstrap.confidence:.0%}",
        "models": run.models,
        "vllm_version": run.environment.versions.get("vllm") or "0.15.0",
        "figures": drawn,
        "absent": prose.ABSENT,
        "dark_rules": theme.dark_rules("figure"),
        "speed": grids.speed(analysis, best),
        "outputs": evidence.outputs(analysis),
        "divergences": evidence.divergences(analysis, token_decoder(run.models["target"].path)),
        "num_divergences": sum(len(one.divergences) for one in found),
        "several": bool(analysis.others),
        "changed": bool(analysis.changed),
        "why": evidence.why(analysis, best),
        "predicted": evidence.predicted(analysis),
        "trust": evidence.trust(analysis),
        "hardware": evidence.hardware(analysis),
        "temperatures": grids.temperatures(analysis),
        "interleaved": grids.interleaved(analysis),
        "interleaving": list(prose.interleaving(analysis)),
        "peers": grids.peers(analysis),
        "peer": prose.peer(analysis),
        "predictions": prose.predictions(analysis),
        "crossings": list(prose.crossings(analysis)),
        "aa_checks": list(prose.aa_checks(analysis)),
        "lossless_rule": prose.lossless_rule(analysis),
        "roofline_rule": prose.ROOFLINE_RULE,
        "drift_known": analysis.drift is not None,
        "drift": list(prose.drift(analysis)),
        "published": prose.PUBLISHED,
        "facts": facts.facts(analysis),
    }
