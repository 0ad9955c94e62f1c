"""Recipes that ship with Palaestra, as TOML files; `learners.config.load_recipe` reads them by name."""
