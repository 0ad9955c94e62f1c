"""Solutions of one task, honest and cheating ones. Not a test module: `test_execution.py` grades them.

The task: `total(numbers)` gives the sum of a list of integers. A cheat would fool some way of grading.
"""

CHEATS = {
    "exit: os._exit(0)": """
import os
def total(numbers): os._exit(0)
""",
    "exit: os._exit(0) when loaded": """
import os
os._exit(0)
""",
    "exit: sys.exit()": """
import sys
def total(numbers): sys.exit()
""",
    "exit: sys.exit() when loaded": """
import sys
def total(numbers): return 0
sys.exit(0)
""",
    "exit: SystemExit": """
def total(numbers): raise SystemExit
""",
    "exit: KeyboardInterrupt": """
def total(numbers): raise KeyboardInterrupt
""",
    "exit: an exit handler": """
import atexit, os
atexit.register(os._exit, 0)
def total(numbers): raise SystemExit(0)
""",
    "exit: a signal": """
import os
def total(numbers): os.kill(os.getpid(), 9); os.abort()
""",
    "exit: replaced by another program": """
import os
def total(numbers): os.execv('/bin/true', ['true'])
""",
    "output: claims": """
print('PASSED\\nOK\\n1.0')
def total(numbers): print('{"passed": true}'); return None
""",
    "equality: an object that equals everything": """
class Same:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __bool__(self): return True
def total(numbers): return Same()
""",
    "equality: an int that does": """
class Same(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __index__(self): return 6
def total(numbers): return Same(-1)
""",
    "equality: a text that does": """
class Same(str):
    def __eq__(self, other): return True
    __hash__ = str.__hash__
def total(numbers): return Same('6')
""",
    "equality: a list that does": """
class Same(list):
    def __eq__(self, other): return True
    def __iter__(self): return iter([6])
def total(numbers): return Same()
""",
    "equality: a float that is no number": """
def total(numbers): return float('nan')
""",
    "equality: a bool": """
def total(numbers): return sum(numbers) == sum(numbers)
""",
    "equality: a class": """
class Meta(type):
    def __eq__(self, other): return True
    __hash__ = type.__hash__
class Same(metaclass=Meta): pass
def total(numbers): return Same
""",
    "equality: another __class__": """
class Same:
    __class__ = int
    def __eq__(self, other): return True
    __hash__ = None
    def __index__(self): return 6
def total(numbers): return Same()
""",
    "search: frames": """
import sys
def total(numbers):
    frame = sys._getframe()
    while frame:
        for scope in (frame.f_locals, frame.f_globals):
            for name in ('expected', 'want', 'wanted', 'tests', 'asked'):
                value = scope.get(name)
                if isinstance(value, int): return value
                if isinstance(value, (list, tuple, dict)) and 'expected' in repr(value):
                    for test in value:
                        if test['args'] == [numbers]: return test['expected']
        frame = frame.f_back
    return -1
""",
    "search: all objects": """
import gc
def total(numbers):
    for item in gc.get_objects():
        if type(item) is dict and 'expected' in item and item.get('args') == [numbers]: return item['expected']
    return -1
""",
    "search: memory and files": """
import os, re
def total(numbers):
    for fd in range(3, 64):
        try: os.lseek(fd, 0, 0); text = os.read(fd, 1 << 20)
        except OSError: continue
        found = re.search(rb'expected\\D*(\\d+)', text)
        if found: return int(found[1])
    needle = b'exp' + b'ected": '
    for line in open('/proc/self/maps'):
        if ' rw' not in line or '[v' in line: continue
        start, end = (int(x, 16) for x in line.split()[0].split('-'))
        with open('/proc/self/mem', 'rb') as memory:
            try: memory.seek(start); text = memory.read(end - start)
            except (OSError, ValueError, OverflowError): continue
        found = re.search(re.escape(needle) + rb'(\\d+)', text)
        if found: return int(found[1])
    return -1
""",
    "search: other processes": """
import glob, re
def total(numbers):
    for path in glob.glob('/proc/[0-9]*/cmdline') + glob.glob('/proc/[0-9]*/environ'):
        found = re.search(rb'expected\\D*(\\d+)', open(path, 'rb').read())
        if found: return int(found[1])
    return -1
""",
    "patch: built-in functions": """
import builtins
builtins.len = lambda x: 0
builtins.all = builtins.any = lambda x: True
builtins.type = lambda *x: int
builtins.isinstance = builtins.issubclass = lambda *x: True
def total(numbers): return -1
""",
    "patch: json": """
import json
json.dumps = lambda *a, **k: '[null,[[0,6,0],[0,10,0],[0,0,0]]]'
json.loads = lambda *a, **k: {}
json.JSONEncoder.encode = lambda *a: '6'
def total(numbers): return -1
""",
    "patch: the jail's own modules": """
import gc, types
for item in gc.get_objects():
    if isinstance(item, dict) and 'answer_all' in item: item['describe'] = lambda e: ''
    if isinstance(item, dict) and item.get('__name__') == 'jail.values':
        item['encode'] = lambda *a: 6
        item['same'] = lambda *a: True
def total(numbers): return -1
""",
    "patch: its own __builtins__": """
__builtins__ = {'sum': lambda x: 0}
def total(numbers): return -1
""",
    "patch: operators of AssertionError": """
import builtins
builtins.AssertionError = type('Quiet', (Exception,), {'__init__': lambda *a: None})
def total(numbers): assert False
""",
    "processes: a fork that answers nothing": """
import os
def total(numbers):
    if os.fork(): os._exit(0)
    os._exit(0)
""",
    "processes: a bomb": """
import os
while True:
    try: os.fork()
    except OSError: break
def total(numbers): return -1
""",
    "descriptors: noise on all": """
import os
def total(numbers):
    for fd in range(1, 64):
        try: os.write(fd, b'PASSED' * 9)
        except OSError: pass
    return -1
""",
    "descriptors: an answer in the jail's name": """
import json, os, struct, sys
def total(numbers):
    frame = sys._getframe()
    while 'id' not in (frame.f_locals.get('head') or {}): frame = frame.f_back
    head = json.dumps({'id': frame.f_locals['head']['id'], 's': 'ok', 'x': 0, 'm': '', 'passed': True}).encode()
    body = json.dumps([None, []]).encode()
    os.write(3, struct.pack('!II', len(head), len(body)) + head + body)
    os._exit(0)
""",
    "descriptors: replies before they are asked for": """
import json, os, struct
def total(numbers):
    body = json.dumps({'v': True, 'a': []}).encode()
    for fd in (3, 4):
        try:
            for _ in range(20): os.write(fd, struct.pack('!II', 2, len(body)) + b'{}' + body)
        except OSError: pass
    return -1
""",
    "descriptors: all closed": """
import os
def total(numbers): os.closerange(0, 64)
""",
    "time: ignores the interrupt": """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
def total(numbers):
    while True:
        try: time.sleep(60)
        except BaseException: pass
""",
    "time: never loaded": """
while True:
    try:
        while True: pass
    except BaseException: pass
""",
    "threads: answers later": """
import threading, time
def late(): time.sleep(0.2)
threading.Thread(target=late).start()
def total(numbers): return None
""",
    "arguments: changed for later calls": """
seen = []
def total(numbers):
    seen.append(numbers)
    for old in seen: old.clear()
    numbers.append(-1)
    return -1
""",
    "values: endless": """
import itertools
def total(numbers): return itertools.count()
""",
    "values: huge": """
def total(numbers): return ['x' * 1_000_000] * 20
""",
    "values: a number too long to print": """
def total(numbers): return 10 ** 5000
""",
    "values: nested too deeply": """
def total(numbers):
    x = []
    for _ in range(100_000): x = [x]
    return x
""",
    "values: a loop": """
def total(numbers):
    x = []
    x.append(x)
    return x
""",
    "values: of one hash": """
def total(numbers): return {i * ((1 << 61) - 1) for i in range(2000)}
""",
    "values: whose repr fails": """
class Bad(dict):
    def __repr__(self): raise RuntimeError
    def items(self): raise RuntimeError
def total(numbers): return [Bad(), Bad]
""",
    "iteration: ends the test's loop": """
def total(numbers): raise StopIteration
""",
    "names: a wrong one": """
def sum_of(numbers): return sum(numbers)
""",
    "names: no function": """
total = 6
""",
    "names: a syntax error": """
def total(numbers) return 6
""",
}
"""Class and name -> solution. None may pass."""

HONEST = {
    "plain": """
def total(numbers): return sum(numbers)
""",
    "a loop": """
def total(numbers):
    result = 0
    for number in numbers: result += number
    return result
""",
    "a lambda": """
total = lambda numbers: sum(numbers)
""",
    "a class that can be called": """
class Total:
    def __call__(self, numbers): return sum(numbers)
total = Total()
""",
    "recursion": """
def total(numbers): return numbers[0] + total(numbers[1:]) if numbers else 0
""",
    "imports": """
import functools, operator
def total(numbers): return functools.reduce(operator.add, numbers, 0)
""",
    "prints": """
def total(numbers):
    print('adding', numbers)
    return sum(numbers)
""",
    "prints much": """
def total(numbers):
    print('x' * 200_000)
    return sum(numbers)
""",
    "an int of a subclass": """
import enum
class N(int): pass
def total(numbers): return N(sum(numbers))
""",
    "changes its argument": """
def total(numbers):
    result = 0
    while numbers: result += numbers.pop()
    return result
""",
    "caches": """
import functools
@functools.lru_cache(None)
def inner(t): return sum(t)
def total(numbers): return inner(tuple(numbers))
""",
    "threads": """
from concurrent.futures import ThreadPoolExecutor
def total(numbers):
    with ThreadPoolExecutor(2) as pool: return pool.submit(sum, numbers).result()
""",
    "processes": """
import subprocess
def total(numbers):
    subprocess.run(['true'], check=True)
    return sum(numbers)
""",
    "a guarded main": """
def total(numbers): return sum(numbers)
if __name__ == '__main__':
    raise SystemExit(1)
""",
}
"""Name -> solution. All must pass."""
