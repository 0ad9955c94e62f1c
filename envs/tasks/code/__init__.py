"""Families of programming tasks, by name."""

from __future__ import annotations

from ....core.tasks import TaskFamily
from .compose import ComposeFamily
from .repair import RepairFamily
from .trace import TraceFamily

FAMILIES: dict[str, TaskFamily] = {family.name: family for family in (ComposeFamily(), RepairFamily(), TraceFamily())}
