"""Weights that others publish: recognised by their content, converted to omma's names, fitted to a backbone.

A file's way: `recognise` finds the network (dialects.py: who calls it what; families/: what its shapes say),
`fit` fills a backbone with it (fit.py), `preprocess` tells how images are prepared for it (inputs.py).
"""

from omma.weights.published.configs import readable
from omma.weights.published.fit import fit
from omma.weights.published.inputs import preprocess
from omma.weights.published.model import into_model
from omma.weights.published.recognise import Recognised, recognise
from omma.weights.published.report import Report

__all__ = ("Recognised", "Report", "fit", "into_model", "preprocess", "readable", "recognise")
