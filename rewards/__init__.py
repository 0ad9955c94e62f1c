"""Verdicts and rewards."""

from .base import Grade, Grader, Scorer
from .execution import GradeReport, TestFailure, grade_code

__all__ = ["Grade", "GradeReport", "Grader", "Scorer", "TestFailure", "grade_code"]
