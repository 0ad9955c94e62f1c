"""What runs inside the jail: standard library only, started as `python -I -S main.py`, never imported by the host
(except the wire format, which both sides speak)."""
