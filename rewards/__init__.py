"""Verdicts and rewards."""

from .base import Grade, Grader, Scorer
from .execution import grade_code
from .report import GradeReport, TestFailure, TestResult, TestStatus

__all__ = ["Grade", "GradeReport", "Grader", "Scorer", "TestFailure", "TestResult", "TestStatus", "grade_code"]
