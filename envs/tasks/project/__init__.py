"""Families of repository tasks, by name."""

from __future__ import annotations

from ....core.tasks import TaskFamily
from .generation import ProjectFamily

FAMILIES: dict[str, TaskFamily] = {family.name: family for family in (ProjectFamily(),)}
