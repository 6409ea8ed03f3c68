"""Published weights: recognised by their content, converted to omma's names, loaded into a backbone.

`recognise` finds the network in a file (dialects.py: naming schemes; families/: what shapes say), `fit`
loads it into a backbone (fit.py), `preprocess` says how its images are prepared (inputs.py).
"""

from omma.weights.published.configs import readable
from omma.weights.published.fit import fit
from omma.weights.published.inputs import preprocess
from omma.weights.published.model import into_model
from omma.weights.published.recognise import Recognised, recognise
from omma.weights.published.report import Report

__all__ = ("Recognised", "Report", "fit", "into_model", "preprocess", "readable", "recognise")
