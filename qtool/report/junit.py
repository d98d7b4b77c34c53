"""The report as JUnit XML, which CI systems show as tests: a suite for each model, a case for each gate."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from qtool.report.model import Comparison, Report, Verdict

# What XML 1.0 has no way to write (https://www.w3.org/TR/xml/#charsets).
_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(report: Report) -> str:
    """Writes the verdicts as test cases, with the figures as properties; without gates, each suite has one case."""
    root = ET.Element("testsuites", name="qtool report")
    for comparison in report.comparisons:
        _suite(root, comparison, [v for v in report.verdicts if v.model == comparison.quantized_model.name])
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document.decode("utf-8") + "\n"


def _suite(root: ET.Element, comparison: Comparison, verdicts: list[Verdict]) -> None:
    name = _writable(comparison.quantized_model.name)
    suite = ET.SubElement(
        root,
        "testsuite",
        name=name,
        tests=str(max(1, len(verdicts))),
        failures=str(sum(verdict.outcome == "failed" for verdict in verdicts)),
        errors=str(sum(verdict.outcome == "unjudged" for verdict in verdicts)),
    )
    properties = ET.SubElement(suite, "properties")
    for figure, found in comparison.figures.items():
        if found.value is not None:
            ET.SubElement(properties, "property", name=_writable(figure), value=f"{found.value:.6g}")
    if not verdicts:
        ET.SubElement(suite, "testcase", classname=name, name="compared with the float model")
    for verdict in verdicts:
        case = ET.SubElement(suite, "testcase", classname=name, name=_writable(verdict.condition))
        message = _writable(verdict.message)
        if verdict.outcome == "failed":
            ET.SubElement(case, "failure", message=message)
        elif verdict.outcome == "unjudged":
            ET.SubElement(case, "error", message=message)
        else:
            ET.SubElement(case, "system-out").text = message


def _writable(text: str) -> str:
    return _UNWRITABLE.sub("?", text)
