"""A report as one page that needs nothing else: no script, no font, no file beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np

from worker.evaluation.confusion import Ints, most_confused
from worker.evaluation.measure import Calibration, Notable
from worker.evaluation.plots import MOST_CLASSES, plot_confusion, plot_reliability
from worker.evaluation.report import Report, aucs

#: What the page may do where it is opened, whoever serves it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
#: Classes of one table; with twice as many all stand in one.
_TABLE_CLASSES = 20
_CONFUSED_PAIRS = 12


def write_page(report: Report) -> bytes:
    """The report as an HTML document. Every name that a user chose is escaped."""
    subject = report.subject
    title = f"{subject.model} on {subject.images}"
    style = Path(__file__).with_name("page.css").read_text()
    body = "\n".join(
        (
            _head(report, title),
            _cards(report),
            _notes(report),
            _averages(report),
            _confusions(report),
            _reliability(report.evaluation.calibration),
            _classes(report),
            _notables(report),
            _foot(report),
        )
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
""".encode()


def _head(report: Report, title: str) -> str:
    made = escape(report.subject.made_at.replace("T", " ")[:16])
    size = f"{report.evaluation.images:,} images, {len(report.evaluation.classes):,} classes"
    return f"""<header>
<p class="over">Evaluation</p>
<h1>{escape(title)}</h1>
<p>{size} · {made} UTC</p>
</header>"""


def _cards(report: Report) -> str:
    found = report.evaluation
    bounds = found.intervals.bounds

    def spread(name: str) -> str:
        low, high = bounds[name]
        return f"{low:.3f} – {high:.3f}"

    cards = [("accuracy", found.scores.accuracy, spread("accuracy"))]
    cards += [
        (f"top {k}", value, spread(f"top_{k}_accuracy"))
        for k, value in found.top_k.items()
        if k > 1
    ]
    cards += [
        ("balanced accuracy", found.scores.balanced_accuracy, spread("balanced_accuracy")),
        ("F1, macro", found.scores.f1, spread("f1")),
    ]
    if found.macro_auc is not None:
        cards.append(("AUC", found.macro_auc, "each against rest"))
    if found.calibration is not None:
        cards.append(("calibration error", found.calibration.ece, "less is better"))
    return (
        '<div class="cards">'
        + "".join(
            f'<div class="card{" first" if index == 0 else ""}"><span>{name}</span>'
            f"<strong>{value:.4f}</strong><span>{detail}</span></div>"
            for index, (name, value, detail) in enumerate(cards)
        )
        + "</div>"
    )


def _notes(report: Report) -> str:
    """What was not measured, and why; nothing where all was."""
    counts = report.counts
    left_out = [
        text
        for number, text in (
            (counts.failed, "could not be answered"),
            (counts.unlabelled, "have no label"),
            (counts.unknown_label, "have a label that is no class of this version"),
        )
        if number
        for text in [f"{number:,} {text}"]
    ]
    if not left_out:
        return ""
    names = ", ".join(
        f"{escape(_cut(name))} ({images:,})" for name, images in report.unknown_labels.items()
    )
    return (
        f'<p class="note">Of {counts.items:,} images {counts.scored:,} were measured: '
        f"{'; '.join(left_out)}{f': {names}' if names else ''}.</p>"
    )


def _averages(report: Report) -> str:
    rows = [
        (f'<td class="name">{kind}</td>', *(_number(values[name]) for name in values))
        for kind, values in report.evaluation.scores.averages.items()
    ]
    return _section(
        "Scores",
        "Macro counts every class alike, weighted by its images, micro every image alike.",
        _table(("average", "precision", "recall", "F1"), rows, numbers_from=1),
    )


def _confusions(report: Report) -> str:
    found = report.evaluation
    chosen = _chosen_classes(report)
    whole = len(chosen) == len(found.classes)
    cells = found.confusion
    rows = [
        (
            _name(found.classes[cells.true[cell]]),
            _name(found.classes[cells.answered[cell]]),
            _integer(int(cells.counts[cell])),
        )
        for cell in most_confused(cells, _CONFUSED_PAIRS)
    ]
    table = _table(("true", "answered", "images"), rows, numbers_from=2)
    return _section(
        "What was taken for what",
        "Each row shows how the images of one class were answered, as shares."
        + (
            ""
            if whole
            else f" Of {len(found.classes):,} classes {len(chosen)} of the most confused."
        ),
        f'<div class="pair"><div>{plot_confusion(cells, found.classes, chosen)}</div>'
        f'<div class="scroll">{table if rows else "<p>Every answer was right.</p>"}</div></div>',
    )


def _chosen_classes(report: Report) -> Ints:
    """All classes where they can be read in one matrix, else those of the most confused pairs."""
    found = report.evaluation
    if len(found.classes) <= MOST_CLASSES:
        return np.arange(len(found.classes))
    cells = most_confused(found.confusion, MOST_CLASSES)
    sides = np.stack((found.confusion.true[cells], found.confusion.answered[cells]), axis=1)
    # In the order of the pairs, each class once.
    classes = list(dict.fromkeys(sides.ravel().tolist()))[:MOST_CLASSES]
    return np.sort(np.array(classes, dtype=np.int64))


def _reliability(calibration: Calibration | None) -> str:
    title = "Is it as sure as it is right?"
    if calibration is None:
        return _section(
            title, "The model's owner does not show exact scores, which this needs.", ""
        )
    rows = [
        ('<td class="name">calibration error (ECE)</td>', calibration.ece, calibration.ece_scaled),
        ('<td class="name">log loss</td>', calibration.log_loss, calibration.log_loss_scaled),
    ]
    table = _table(
        ("", "as it is", "scaled"),
        [(name, _number(before), _number(after)) for name, before, after in rows],
        numbers_from=1,
    )
    lean = "too sure" if calibration.temperature > 1 else "not sure enough"
    return _section(
        title,
        "On the dashed line, of the images answered with confidence 0.8 four in five are right. "
        "Below it the version is too sure of itself.",
        f'<div class="pair"><div>{plot_reliability(calibration.bins)}</div><div>{table}'
        f"<p>Fitted temperature {calibration.temperature:.3f}: the version is {lean}, and its "
        "logits divided by this number fit these images best. Scaled numbers are of the same "
        "images that it was fitted on.</p>"
        f"<p>Brier score {calibration.brier:.4f}.</p></div></div>",
    )


def _classes(report: Report) -> str:
    rows = report.evaluation.scores.per_class
    present = [index for index, row in enumerate(rows) if row.support or row.answered]
    if len(present) <= 2 * _TABLE_CLASSES:
        return _section("Classes", "", _class_table(report, present))
    worst = sorted(present, key=lambda index: (rows[index].f1, -rows[index].support))
    frequent = sorted(present, key=lambda index: -rows[index].support)
    return _section(
        "Classes",
        f"The report's CSV has all {len(rows):,}.",
        _class_table(report, worst[:_TABLE_CLASSES], "Least F1")
        + _class_table(report, frequent[:_TABLE_CLASSES], "Most images"),
    )


def _class_table(report: Report, chosen: Sequence[int], caption: str = "") -> str:
    found = report.evaluation
    areas = aucs(found)
    lines = []
    for index in chosen:
        row, area = found.scores.per_class[index], areas[index]
        bar = f'<span class="bar"><i style="width:{row.f1:.1%}"></i></span>'
        lines.append(
            (
                _name(row.name),
                _integer(row.support),
                _number(row.precision),
                _number(row.recall),
                f'<td class="n">{bar}{row.f1:.3f}</td>',
                '<td class="n">–</td>' if area is None else _number(area),
            )
        )
    heads = ("class", "images", "precision", "recall", "F1", "AUC")
    return f'<div class="scroll">{_table(heads, lines, numbers_from=1, caption=caption)}</div>'


def _notables(report: Report) -> str:
    found = report.evaluation
    sections = []
    for title, text, notables in (
        (
            "Confidently wrong",
            "Often a wrong label, else what to learn next.",
            found.confidently_wrong,
        ),
        ("Hardest", "The least probability for the true class.", found.hardest),
    ):
        if notables:
            rows = [_notable_row(report, each) for each in notables]
            heads = ("image", "label", "answered", "confidence", "for the label")
            table = _table(heads, rows, numbers_from=3)
            sections.append(_section(title, text, f'<div class="scroll">{table}</div>'))
    return "\n".join(sections)


def _notable_row(report: Report, notable: Notable) -> tuple[str, ...]:
    classes = report.evaluation.classes
    share = notable.true_probability
    return (
        _name(report.items[notable.index].custom_id),
        _name(classes[notable.target]),
        _name(classes[notable.predicted]),
        _number(notable.confidence),
        '<td class="n">–</td>' if share is None else f'<td class="n">{share:#.2g}</td>',
    )


def _foot(report: Report) -> str:
    subject, intervals = report.subject, report.evaluation.intervals
    lines = [
        f"Small numbers below scores: {intervals.level:.0%} intervals, percentiles of "
        f"{intervals.samples:,} resamples of the images, seed {intervals.seed}.",
        f"Job {subject.job_id} · version {subject.model_version_id}"
        + (f" · dataset {subject.dataset_version_id}" if subject.dataset_version_id else ""),
        f"Weights {subject.weights_sha256} · preprocessing {subject.preprocess_sha256} (SHA-256)",
    ]
    return f"<footer>{''.join(f'<p>{escape(line)}</p>' for line in lines)}</footer>"


def _section(title: str, text: str, content: str) -> str:
    lead = f"<p>{text}</p>" if text else ""
    return f"<section><h2>{title}</h2>{lead}{content}</section>"


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int, caption: str = ""
) -> str:
    """``rows`` are cells with their ``td``; columns from ``numbers_from`` on hold numbers."""
    head = "".join(
        f'<th class="n">{name}</th>' if index >= numbers_from else f"<th>{name}</th>"
        for index, name in enumerate(heads)
    )
    lines = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    title = f"<caption>{caption}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _name(text: str) -> str:
    return f'<td class="name" title="{escape(text)}">{escape(_cut(text))}</td>'


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"


def _number(value: float) -> str:
    return f'<td class="n">{value:.4f}</td>'


def _integer(value: int) -> str:
    return f'<td class="n">{value:,}</td>'
