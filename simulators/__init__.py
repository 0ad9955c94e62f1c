"""Simulated users and adversaries for environments."""
