"""Attacks on sandboxes, as data, and the harness that runs them in every mode of isolation.

`attack` says what an attack is; `reading`, `network`, `escape`, `neighbours`, `exhaustion`, `forging` and `persistence`
hold them; `host` and `sentinel` are what they are after; `harness` runs one and says what it achieved.
"""
