"""Duplicates of images: found by bytes, pixels, hashes and features, grouped, and across splits."""

from omma.curation.duplicates.calibrate import Calibration as Calibration
from omma.curation.duplicates.calibrate import Share as Share
from omma.curation.duplicates.find import find as find
from omma.curation.duplicates.groups import Group as Group
from omma.curation.duplicates.leakage import Joined as Joined
from omma.curation.duplicates.leakage import across as across
from omma.curation.duplicates.result import Found as Found
from omma.curation.duplicates.result import Pair as Pair
from omma.curation.duplicates.rule import Rule as Rule
