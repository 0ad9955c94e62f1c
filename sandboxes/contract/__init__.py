"""What every sandbox promises, as checks: one subject per file. `sandboxes.self_check` runs them."""
