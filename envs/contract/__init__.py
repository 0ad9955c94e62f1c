"""The contract of environments, one subject per file; see `envs.self_check`."""
