"""."""
from .attack import Attack
ATTACKS: tuple[Attack, ...] = ()
