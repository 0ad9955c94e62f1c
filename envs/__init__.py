"""Gymnasium environments: `ToolEnv` and what is built on it."""
