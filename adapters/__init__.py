"""Bridges to other projects' formats; each imports its peer only when it is used."""
