"""The rows of the comparison; each module has `run(quick)`, which measures and returns a section of the page."""
