"""Metrics in the text format of Prometheus (version 0.0.4)."""

from __future__ import annotations

from collections.abc import Mapping

from reconciler.control.models import MetricList

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def text(metrics: MetricList) -> str:
    """One block per metric: what it is, its type, its samples."""
    lines: list[str] = []
    for metric in metrics.items:
        lines += [f"# HELP {metric.name} {_help(metric.help)}", f"# TYPE {metric.name} {metric.kind}"]
        lines += [
            f"{metric.name}{sample.suffix}{_labels(sample.labels)} {sample.value:.17g}"
            for sample in metric.samples
        ]
    return "\n".join([*lines, ""])


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_value(value)}"' for name, value in labels.items()) + "}"


def _value(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")
