"""Reports of runs: pages and pictures made from arrays, numbers and text."""
