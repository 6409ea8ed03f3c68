"""What the report says of a classifier: held-out figures, floors, calibration, and ways that were tried."""

from collections.abc import Mapping, Sequence
from typing import Any

from omma.reporting import svg
from omma.reporting.charts import interval_chart
from omma.reporting.html import Section, Verdict
from omma.reporting.results import ReportedScore, figure, percent

SIDE, LEFT, TOP = 200, 44, 34  # of the square of a reliability diagram, in units of the view box


def verdict(facts: Mapping[str, Any]) -> Verdict:
    """How good it is on images that it was not fitted on."""
    held_out, of = facts.get("held_out"), f"Classifier, {len(facts['classes']):,} classes"
    if held_out is None:
        return Verdict(of, "Not judged: no labelled image is held out", "warn")
    name, words = ("map_macro", "mean average precision") if facts["multi_label"] else ("top1", "right")
    main = held_out["metrics"][name]
    low, high = (percent(end).removesuffix(" %") for end in main["interval95"])
    beaten = [f for f in facts["floors"] if f["value"] > main["interval95"][1]]
    reason = f"95 % interval {low} to {high}; {held_out['protocol']}."
    if beaten:
        reason += f" {beaten[0]['name']} on {beaten[0]['features']} is better."
    return Verdict(of, f"{percent(main['value'])} {words}", "warn" if beaten else "good", reason)


def sections(facts: Mapping[str, Any]) -> list[Section]:
    """The pictures, each with what to look for."""
    found = []
    scores = _scores(facts)
    if scores:
        protocol = facts["held_out"]["protocol"]
        caption = (
            f"The classifier beside classical ones on the same images ({protocol}), none fitted on them."
        )
        found.append(
            Section("Beside simpler classifiers", caption, [interval_chart(scores, "Held-out images")])
        )
    if facts.get("candidates"):
        scores = [
            _score("trained" if each["name"] == facts["adapt"] else each["name"], each["name"], "top1", each)
            for each in facts["candidates"]
        ]
        caption = (
            f"All were judged on the same held-out images. Kept: {facts['adapt']}, the simplest within one "
        )
        caption += "standard error of the best. " + ". ".join(facts.get("not_tried", ()))
        found.append(Section("Ways that were tried", caption, [interval_chart(scores, "Held-out images")]))
    bins = facts.get("held_out", {}).get("reliability")
    if bins:
        temperature, metrics = facts["calibration"]["temperature"], facts["held_out"]["metrics"]
        caption = (
            "Answers of one confidence should be right as often: points on the diagonal. The area of a point "
            f"shows how many answers it is. Calibration error {figure(facts['held_out']['ece_before'])} "
            f"before, {figure(metrics['ece']['value'])} after dividing logits by {figure(temperature)}."
        )
        found.append(Section("How sure it is", caption, [reliability(bins)]))
    return found


def _scores(facts: Mapping[str, Any]) -> list[ReportedScore]:
    if not facts["floors"]:
        return []
    name = "map_macro" if facts["multi_label"] else "top1"
    ours = facts["held_out"]["metrics"][name]
    own = _score("trained", "this classifier", facts["floors"][0]["metric"], ours)
    return [
        own,
        *(_score(f["name"], f"{f['name']}, {f['features']}", f["metric"], f) for f in facts["floors"]),
    ]


def _score(subject: str, name: str, metric: str, entry: Mapping[str, Any]) -> ReportedScore:
    low, high = entry["interval95"]
    return ReportedScore(
        subject=subject,
        name=name,
        protocol="held-out",
        metric=metric,
        value=entry["value"],
        low=low,
        high=high,
    )


def reliability(bins: Sequence[Sequence[Mapping[str, float]]]) -> svg.Svg:
    """Accuracy over confidence, before and after the temperature, from the bins of finetune.json."""
    title, parts = "Confidence and accuracy, before and after", []
    parts.append(svg.text(0, 16, title, size=svg.FONT + 2, weight=600, tone="ink"))
    most = max(each["images"] for half in bins for each in half)
    for k, (half, words) in enumerate(zip(bins, ("before", "after"), strict=True)):
        left, bottom = LEFT + k * (SIDE + 34), TOP + 16 + SIDE
        parts.append(svg.text(left, TOP + 8, words, weight=600))
        parts.append(
            f'<path d="M{left} {TOP + 16}h{SIDE}v{SIDE}h-{SIDE}z M{left} {bottom}L{left + SIDE} {TOP + 16}" '
            'style="fill:none;stroke:var(--axis,#a9afb5)"/>'
        )
        for tick in (0.0, 0.5, 1.0):
            parts.append(svg.text(left + tick * SIDE, bottom + 15, f"{tick:.0%}", anchor="middle"))
            if k == 0:
                parts.append(svg.text(left - 6, bottom - tick * SIDE + 4, f"{tick:.0%}", anchor="end"))
        for each in half:
            x, y = left + each["confidence"] * SIDE, bottom - each["accuracy"] * SIDE
            hint = (
                f"{percent(each['accuracy'])} right at {percent(each['confidence'])}: {each['images']:,.0f}"
            )
            radius = 2 + 9 * (each["images"] / most) ** 0.5
            parts.append(
                f'<g><title>{svg.quote(hint)}</title><circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" '
                f'style="{svg.fill(k)};fill-opacity:.75"/></g>'
            )
    return svg.finish(title, TOP + 16 + SIDE + 24, parts)
