"""The report of an evaluation: its figures, classes and confusions, for models that have no run folder."""

from pathlib import Path

from omma.core.protocols import Images
from omma.evaluation import knn
from omma.evaluation.verdict import Evaluation
from omma.reporting import confusions, html
from omma.reporting.results import ReportedEvaluation


def write_report(file: Path, evaluation: Evaluation, images: Images) -> Path:
    """Write the page; images: those that were evaluated, for examples of confused classes."""
    content = evaluation.to_json()
    reported = ReportedEvaluation.read(content, knn.HEADLINE)
    page = html.page(
        title=Path(evaluation.model).name or evaluation.model,
        verdicts=[html.Verdict(f"Evaluated on {reported.data}", reported.verdict, reported.level)],
        facts=[("Model", evaluation.model), ("Weights", evaluation.digest[:12])],
        evaluations=[reported],
        sections=confusions.sections(content["details"], images),
    )
    return html.write(file, page)
