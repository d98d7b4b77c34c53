"""The report as JUnit XML, which CI systems show as tests: a suite for each model, a case for each gate."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

from qtool.reporting.figures import FIGURES
from qtool.reporting.model import Report

# What XML 1.0 has no way to write (https://www.w3.org/TR/xml/#charsets).
_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(report: Report) -> str:
    """Writes the verdicts as test cases, with the figures as properties; without gates, each suite has one case."""
    root = ET.Element("testsuites", name="qtool report")
    for comparison in report.by_model:
        _suite(root, report, comparison.quantized_model.name)
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document.decode("utf-8") + "\n"


def _suite(root: ET.Element, report: Report, model: str) -> None:
    verdicts = [verdict for verdict in report.verdicts if verdict.model == model]
    name = _writable(model)
    suite = ET.SubElement(
        root,
        "testsuite",
        name=name,
        tests=str(max(1, len(verdicts))),
        failures=str(sum(verdict.outcome == "failed" for verdict in verdicts)),
        errors=str(sum(verdict.outcome == "unjudged" for verdict in verdicts)),
    )
    properties = ET.SubElement(suite, "properties")
    for figure, value in _properties(report, model):
        ET.SubElement(properties, "property", name=_writable(figure), value=f"{value:.6g}")
    if not verdicts:
        ET.SubElement(suite, "testcase", classname=name, name="compared with the float model")
    for verdict in verdicts:
        tested = f"{verdict.condition} on {verdict.dataset}" if verdict.dataset else verdict.condition
        case = ET.SubElement(suite, "testcase", classname=name, name=_writable(tested))
        message = _writable(verdict.message)
        if verdict.outcome == "failed":
            ET.SubElement(case, "failure", message=message)
        elif verdict.outcome == "unjudged":
            ET.SubElement(case, "error", message=message)
        else:
            ET.SubElement(case, "system-out").text = message


def _properties(report: Report, model: str) -> Iterator[tuple[str, float]]:
    """Yields every figure of a model that is known: those of data once for each dataset, by its name."""
    several = len(report.datasets) > 1
    for place, dataset in enumerate(report.datasets):
        for comparison in report.on(dataset):
            if comparison.quantized_model.name != model:
                continue
            for name, found in comparison.figures.items():
                of_data = several and FIGURES[name.partition("[")[0]].of_data
                if found.value is not None and (of_data or place == 0):
                    yield f"{name} on {dataset.name}" if of_data else name, found.value


def _writable(text: str) -> str:
    return _UNWRITABLE.sub("?", text)
