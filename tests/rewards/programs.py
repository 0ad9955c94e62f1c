"""Whole programs for one task, right and wrong ones. Not a test module: `test_program_tests.py` grades them.

The task: print the sum of the two numbers in each line of the input.
"""

_SUMS = "def sums(text):\n    return [sum(map(int, line.split())) for line in text.splitlines()]\n"

RIGHT = {
    "input()": """
while True:
    try: a, b = map(int, input().split())
    except EOFError: break
    print(a + b)
""",
    "lines of sys.stdin": """
import sys
for line in sys.stdin: print(sum(int(x) for x in line.split()))
""",
    "bytes": """
import sys
for line in sys.stdin.buffer.read().split(b'\\n'):
    if line: sys.stdout.buffer.write(b'%d\\n' % sum(map(int, line.split())))
""",
    "open(0)": _SUMS + "print(*sums(open(0).read()), sep='\\n')",
    "a raw descriptor": _SUMS
    + "import os\nos.write(1, '\\n'.join(map(str, sums(os.read(0, 1000).decode()))).encode())",
    "/dev/stdin": _SUMS + "print(*sums(open('/dev/stdin').read()), sep='\\n')",
    "a mapped file": _SUMS
    + """
import mmap
with mmap.mmap(0, 0, access=mmap.ACCESS_READ) as data: print(*sums(data[:].decode()), sep='\\n')
""",
    "a guarded main": _SUMS
    + """
import sys
def main(): print('\\n'.join(map(str, sums(sys.stdin.read()))))
if __name__ == '__main__' and len(sys.argv) == 1: main()
""",
    "its own file": _SUMS
    + """
import inspect, os, sys
assert open(__file__).read() == inspect.getsource(sys.modules['__main__'])
assert os.path.dirname(__file__) == os.getcwd() == sys.path[0]
print(*sums(sys.stdin.read()), sep='\\n')
""",
    "white space": _SUMS
    + """
import sys
for n in sums(sys.stdin.read()): sys.stdout.write(f'{n} \\t\\r\\n')
print('\\n\\n  ')
""",
    "sys.exit(0)": _SUMS + "import sys\nprint(*sums(sys.stdin.read()), sep='\\n')\nsys.exit(0)\nprint('never')",
    "exit()": _SUMS + "print(*sums(open(0).read()), sep='\\n')\nexit()",
    "SystemExit in a function": _SUMS
    + """
def main():
    print(*sums(open(0).read()), sep='\\n')
    raise SystemExit
main()
""",
    "os._exit(0)": _SUMS + "import os\nprint(*sums(open(0).read()), sep='\\n', flush=True)\nos._exit(0)",
    "an exit handler": _SUMS
    + """
import atexit
atexit.register(lambda: print(*answers, sep='\\n'))
answers = sums(open(0).read())
""",
    "a thread": _SUMS
    + """
import threading, time
def work():
    time.sleep(0.05)
    print(*sums(open(0).read()), sep='\\n')
threading.Thread(target=work).start()
""",
    "a thread that goes on without the program": _SUMS
    + """
import threading, time
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print(*sums(open(0).read()), sep='\\n')
""",
    "a thread with a large stack": _SUMS
    + """
import sys, threading
sys.setrecursionlimit(200_000)
threading.stack_size(1 << 26)
def depth(n): return depth(n - 1) if n else 0
def main():
    depth(20_000)
    print(*sums(sys.stdin.read()), sep='\\n')
thread = threading.Thread(target=main)
thread.start()
thread.join()
""",
    "a pool": _SUMS
    + """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(2) as pool: print(*pool.map(lambda line: sum(map(int, line.split())), open(0)), sep='\\n')
""",
    "a child process": _SUMS
    + """
import subprocess
text = subprocess.run(['cat'], capture_output=True, text=True, check=True).stdout
print(*sums(text), sep='\\n')
""",
    "a fork": _SUMS
    + """
import os
if os.fork() == 0: print(*sums(open(0).read()), sep='\\n')
else: os.wait()
""",
    "processes": _SUMS
    + """
import multiprocessing
def add(line, pipe): pipe.send(sum(map(int, line.split())))
if __name__ == '__main__':
    context = multiprocessing.get_context('fork')
    for line in open(0).read().splitlines():
        ours, theirs = context.Pipe()
        process = context.Process(target=add, args=(line, theirs))
        process.start()
        print(ours.recv())
        process.join()
""",
    "another stdout": _SUMS
    + """
import io, sys
sys.stdout = io.StringIO()
print(*sums(sys.stdin.read()), sep='\\n')
sys.__stdout__.write(sys.stdout.getvalue())
""",
    "a file that is never closed": _SUMS + "out = open(1, 'w')\nout.write('\\n'.join(map(str, sums(open(0).read()))))",
    "a destructor": _SUMS
    + """
class Late:
    def __init__(self, lines): self.text = '\\n'.join(map(str, lines))
    def __del__(self): import os; os.write(1, self.text.encode())
late = Late(sums(open(0).read()))
""",
    "stderr": _SUMS
    + "import sys\nprint('noise' * 100_000, file=sys.stderr)\nprint(*sums(sys.stdin.read()), sep='\\n')",
}
"""Name -> program. All must pass."""

WRONG = {
    "nothing": "",
    "claims": "print('PASSED')\nprint('{\"passed\": true, \"exit\": 0}')",
    "one line too many": RIGHT["input()"] + "print(0)",
    "one line too few": "print(sum(map(int, input().split())))",
    "an empty line between": RIGHT["input()"].replace("a + b)", "a + b, end='\\n\\n')"),
    "white space in front": RIGHT["input()"].replace("print(a", "print('', a"),
    "all on one line": _SUMS + "print(*sums(open(0).read()))",
    "every number": "for n in range(-100, 1000): print(n)",
    "the input": "import sys\nprint(sys.stdin.read())",
    "twice": _SUMS + "import os\nlines = sums(open(0).read())\nif os.fork(): os.wait()\nprint(*lines, sep='\\n')",
    "exit status 1": RIGHT["input()"] + "exit(1)",
    "exit with a message": RIGHT["input()"] + "exit('done')",
    "os._exit(3)": RIGHT["os._exit(0)"].replace("_exit(0)", "_exit(3)"),
    "os._exit(0) before the output is written": RIGHT["os._exit(0)"].replace(", flush=True", ""),
    "an exception at the end": RIGHT["input()"] + "1 / 0",
    "a signal at the end": RIGHT["input()"].replace("a + b)", "a + b, flush=True)") + "import os; os.abort()",
    "another program": RIGHT["input()"] + "import os; os.execv('/bin/sleep', ['sleep', '60'])",
    "a syntax error": "print(",
    "a child that prints later": """
import os, time
lines = open(0).read().splitlines()
if os.fork() == 0:
    time.sleep(0.3)
    for line in lines: print(sum(map(int, line.split())))
""",
    "a process of its own session that prints later": """
import subprocess
subprocess.Popen(['sh', '-c', 'sleep 0.3; echo 3; echo 7'], start_new_session=True)
""",
    "everything that other processes hold": """
import glob
for name in ('cmdline', 'environ', 'comm', 'status', 'maps', 'stack', 'syscall', 'auxv', 'fd/0', 'root/tmp/*'):
    for path in glob.glob(f'/proc/[0-9]*/{name}'):
        try: print(open(path, 'rb').read(100_000))
        except OSError: pass
""",
    "what its own memory holds": """
import re
found = []
for line in open('/proc/self/maps'):
    if ' rw' not in line or '[v' in line: continue
    start, end = (int(x, 16) for x in line.split()[0].split('-'))
    with open('/proc/self/mem', 'rb') as memory:
        try: memory.seek(start); text = memory.read(end - start)
        except (OSError, ValueError, OverflowError): continue
    found += re.findall(rb'std' + rb'out": "([^"]*)"', text)
print(found[0].decode() if found else '')
""",
    "what frames and objects hold": """
import gc, sys
frame, seen = sys._getframe(), []
while frame:
    seen += [*frame.f_locals.values(), *frame.f_globals.values()]
    frame = frame.f_back
for item in [*seen, *gc.get_objects()]:
    if type(item) is dict and 'stdout' in item and 'stdin' in item: print(item['stdout'])
""",
    "the files of other tests": """
import glob
for path in glob.glob('/tmp/**', recursive=True) + glob.glob('/workspace/**', recursive=True):
    try: print(open(path).read())
    except OSError: pass
""",
    "an answer in the jail's name": """
import json, os, struct, sys
frame = sys._getframe()
while 'id' not in (frame.f_locals.get('head') or {}): frame = frame.f_back
head = {'id': frame.f_locals['head']['id'], 's': 'ok', 'x': 0, 'm': '', 'o': 4, 'status': 'ok', 'passed': True}
head, body = json.dumps(head).encode(), b'3\\n7\\n'
os.write(3, struct.pack('!II', len(head), len(body)) + head + body)
os._exit(0)
""",
    "noise on all descriptors": """
import os
for fd in range(2, 64):
    try: os.write(fd, b'PASSED' * 9)
    except OSError: pass
""",
    "patched functions": """
import builtins, gc
builtins.len = lambda x: 0
for item in gc.get_objects():
    if isinstance(item, dict) and str(item.get('__name__')).startswith('jail.'):
        for name in list(item): item[name] = None
""",
}
"""Name -> program. None may pass."""
