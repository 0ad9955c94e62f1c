"""Attacks that lie: to the supervisor in the session's name, to the host about others, and to a grader.

What a session says about itself it may say (its output, whether its own code failed): the sandbox only has to keep it
apart from what others say and from what only the sandbox can know. More ways to cheat a grader are in
tests/rewards/solutions.py.
"""

from dataclasses import dataclass

from .attack import Attack

SPEAK = r"""
frame = sys._getframe()
while "id" not in (frame.f_locals.get("head") or {}): frame = frame.f_back
this_call = frame.f_locals["head"]["id"]
def speak(head, body=b""):
    "Sends a frame to the supervisor, as the session itself does."
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    data = struct.pack("!II", len(text), len(body)) + text + body
    while data: data = data[os.write(3, data):]
"""
CARELESS_HOST = r"""
ours, theirs = socket.socketpair()
speaker = os.fork()
if speaker:
    theirs.close(); ours.settimeout(3)
    heard = b""
    while len(heard) < 9:
        piece = attempt(ours.recv, 1 << 16)
        if not piece: break
        heard += piece
    escaped("a careless host", "believes" if heard else "is left alone", heard[8:80])
    os.kill(speaker, signal.SIGKILL); os.waitpid(speaker, 0)
    raise SystemExit
os.dup2(theirs.fileno(), 3); theirs.close(); ours.close()
"""
"""For controls: the program talks to somebody who takes its word for everything, where a session has its supervisor."""
WAIT = "\ntime.sleep(0.4)\n"
_NOBODY_ASKED = (
    "{'id': None}",
    "{'id': [1]}",
    "{'s': 'sandbox_died'}",
    "{'id': 'x', 'fatal': 'y'}",
    "{'id': this_call + 1, 's': 'ok'}",
    "{'id': 0, 'fatal': 'the jail failed'}",
    "{'id': this_call + 0.5}",
)
_IN_ITS_NAME = (
    "'s': ['ok'], 'x': {}, 'm': [1]",
    "'s': 'ok', 'x': 10**30, 'm': 'a\\n\\x1b[2J\\ud800'",
    "'s': 'sandbox_died', 'x': True",
    "'s': 'timeout', 'x': -9, 'm': '\\u202e' * 100000",
    "'s': 'ok', 'alive': False, 'o': 10**9, 'status': 'sandbox_died', 'seconds': -1",
)

ATTACKS = (
    Attack(
        name="noise to the supervisor",
        program="os.write(3, b'\\xff' * 64)" + WAIT,
        ends=("killed",),
        control_setup=CARELESS_HOST,
    ),
    Attack(
        name="hanging up on the supervisor",
        program="os.close(3)" + WAIT,
        ends=("killed",),
        control_setup=CARELESS_HOST,
    ),
    Attack(
        name="a frame that says it is huge",
        program="os.write(3, struct.pack('!II', 2, 1 << 31) + b'{}' + bytes(1000))" + WAIT,
        ends=("killed",),
        control_setup=CARELESS_HOST,
    ),
    Attack(
        name="half a frame",
        program="os.write(3, struct.pack('!II', 200, 200) + b'{')\nos.close(3)" + WAIT,
        ends=("killed",),
        control_setup=CARELESS_HOST,
    ),
    Attack(
        name="a head that is no JSON object",
        program=SPEAK + "speak(b'[' * 900 + b']' * 900)" + WAIT,
        ends=("killed",),
        control_setup=CARELESS_HOST,
    ),
    *(
        Attack(
            name=f"an answer that nobody asked for: {head}",
            program=f"{SPEAK}\nspeak({head}){WAIT}",
            ends=("killed",),
            control_setup=CARELESS_HOST,
        )
        for head in _NOBODY_ASKED
    ),
    *(
        Attack(
            name=f"an answer in the session's name: {fields}",
            program=f"{SPEAK}\nspeak({{'id': this_call, {fields}}}, b'ESCAPED' * (1 << 17)){WAIT}",
            ends=("ok", "error"),
            control_setup=CARELESS_HOST,
        )
        for fields in _IN_ITS_NAME
    ),
    Attack(
        name="fields that are nested deeply",
        program=SPEAK
        + """
for depth in (900, 960, 990, 5000):
    if os.fork() == 0:
        nested = b"[" * depth + b"]" * depth
        speak(b'{"id":%d,"s":' % this_call + nested + b',"m":' + nested + b"}")
        os._exit(0)
    os.wait()
"""
        + WAIT,
        ends=("killed", "error", "ok"),
        control_setup=CARELESS_HOST,
    ),
    Attack(
        name="a flood of frames",
        program=SPEAK
        + """
many = (struct.pack("!II", 2, 0) + b"{}") * 20_000
while True: os.write(3, many)
""",
        ends=("killed", "error"),
        control_setup=CARELESS_HOST,
    ),
    Attack(
        name="two processes that answer one question",
        program=SPEAK
        + """
for _ in range(8):
    if os.fork() == 0: speak({"id": this_call, "s": "ok", "x": 0, "m": ""}); os._exit(0)
while attempt(os.wait): pass
""",
        ends=("ok", "killed", "dead"),
        control_setup=CARELESS_HOST,
    ),
    Attack(
        name="answers on every descriptor",
        program=SPEAK
        + """
frame = json.dumps({"id": this_call, "s": "ok", "status": "sandbox_died", "fatal": "x"}).encode()
names = set(range(256)) | {f"/proc/{pid}/fd/{fd}" for pid in PIDS if pid != os.getpid() for fd in range(10)}
for name in names - {0, 1, 2}:
    fd = name if isinstance(name, int) else attempt(os.open, name, os.O_WRONLY | os.O_NONBLOCK)
    if fd is None: continue
    if attempt(os.write, fd, struct.pack("!II", len(frame), 0) + frame) and not isinstance(name, int): escaped("wrote to", name)
""",
        ends=("ok", "killed"),
        control_setup=CARELESS_HOST,
    ),
    Attack(
        name="output of the neighbour",
        program="""
if os.fork() == 0:
    os.setsid()
    end = time.monotonic() + 1
    while time.monotonic() < end:
        for pid in VICTIM["pids"]:
            if pid == os.getppid() or pid == 1: continue
            for fd in (1, 2):
                ours = attempt(os.open, f"/proc/{pid}/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK)
                if ours is not None: attempt(os.write, ours, b"ESCAPED forged\\n"); os.close(ours)
        time.sleep(0.002)
    os._exit(0)
""",
        check="time.sleep(0.3)\nprint('genuine')",
    ),
    Attack(
        name="messages that move the cursor",
        program="raise ValueError('a\\x1b[2J\\ud800\\u202e\\r\\nESC' + 'APED' * 0 + 'b' * 5000)",
        ends=("error",),
        control=None,
        why="the same supervisor cleans messages in every mode",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Cheat:
    """A wrong solution that fools a grader which runs it in one process with its tests, and believes what comes out."""

    name: str
    solution: str


CHEATED_TESTS = """
import math
def check(candidate):
    assert math.isclose(candidate([1000, 1000, 1000]), 3000)
    assert math.isclose(candidate([1000, 2000, 4000]), 7000)
    assert math.isclose(candidate([5000, 0, 0]), 5000)
"""
CHEATED_DATA = (
    {"args": [[1000, 1000, 1000]], "expected": 3000},
    {"args": [[1000, 2000, 4000]], "expected": 7000},
    {"args": [[5000, 0, 0]], "expected": 5000},
)
CHEATS = (
    Cheat(
        name="a copy of the grader for every guess",
        solution="""
import os
def total(numbers):
    for guess in range(3000, 8000, 1000):
        if os.fork() == 0: return guess
        os.wait()
    os._exit(1)
""",
    ),
    Cheat(
        name="an end that a hook makes a good one",
        solution="""
import os, sys
sys.excepthook = lambda *_: os._exit(0)
def total(numbers): return None
""",
    ),
    Cheat(
        name="an object whose death ends all well",
        solution="""
import os
class Late:
    def __del__(self): os._exit(0)
late = Late()
def total(numbers): return None
""",
    ),
    Cheat(
        name="a verdict that is printed last",
        solution="""
import atexit
atexit.register(print, 'PASSED')
def total(numbers): return None
""",
    ),
    Cheat(
        name="a thread that ends the grader",
        solution="""
import os, threading, time
threading.Thread(target=lambda: (time.sleep(0.05), os._exit(0)), daemon=True).start()
def total(numbers): time.sleep(1)
""",
    ),
    Cheat(
        name="a module that the tests use, replaced",
        solution="""
import math
math.isclose = lambda *_, **__: True
def total(numbers): return None
""",
    ),
    Cheat(
        name="the constants of the tests, read",
        solution="""
import sys
def total(numbers):
    constants = list(sys._getframe(1).f_code.co_consts)
    return constants[constants.index(tuple(numbers)) + 1] if tuple(numbers) in constants else -1
""",
    ),
    Cheat(
        name="the constants of the tests, rewritten",
        solution="""
import ctypes, sys
def total(numbers):
    constants = sys._getframe(1).f_code.co_consts
    for index, value in enumerate(constants):
        if type(value) is int: ctypes.c_void_p.from_address(id(constants) + 24 + 8 * index).value = id(-1)
    return -1
""",
    ),
)
