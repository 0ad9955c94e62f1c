"""Attacks that reach somebody over a socket: the host, its network, its services, or the hypervisor."""

from .attack import Attack

MACHINE_CODE = r"""
def in_low_memory(data, size=4096, protection=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC):
    "The address of a copy of some bytes that 32-bit code can reach."
    private_anonymous_32bit = 0x62
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, ctypes.c_size_t(size), protection, private_anonymous_32bit, -1, ctypes.c_long(0))
    ctypes.memmove(address, data, len(data))
    return address

def int80(number, *arguments):
    "A system call through the 32-bit gate."
    code = b"\x53"  # push rbx
    for opcode, value in zip(b"\xb8\xbb\xb9\xba", [number, *arguments, 0, 0, 0]):  # mov eax, ebx, ecx, edx
        code += bytes([opcode]) + struct.pack("<I", value & 0xFFFFFFFF)
    code += b"\xcd\x80\x5b\xc3"  # int 0x80; pop rbx; ret
    return ctypes.CFUNCTYPE(ctypes.c_int)(in_low_memory(code))()
"""
RING = r"""
class Ring:
    "An io_uring with one submission at a time."
    def __init__(self):
        parameters = ctypes.create_string_buffer(120)
        self.fd = syscall("io_uring_setup", 4, parameters)
        if self.fd < 0: raise OSError(ctypes.get_errno(), "io_uring_setup")
        fields = struct.unpack("<30I", parameters.raw)
        self.tail, self.mask, self.array = fields[11], fields[12], fields[16]
        self.head, self.results = fields[20], fields[25]
        self.rings = mmap.mmap(self.fd, 4096, offset=0)
        self.entries = mmap.mmap(self.fd, 4096, offset=0x10000000)
    def call(self, operation, fd=0, offset=0, address=0, length=0, flags=0):
        "Submits an operation and gives its result."
        self.entries[:64] = struct.pack("<BBHiQQII", operation, 0, 0, fd, offset, address, length, flags) + bytes(32)
        tail = int.from_bytes(self.rings[self.tail : self.tail + 4], "little")
        self.rings[self.array + 4 * (tail & 3) : self.array + 4 * (tail & 3) + 4] = bytes(4)
        self.rings[self.tail : self.tail + 4] = struct.pack("<I", tail + 1)
        syscall("io_uring_enter", self.fd, 1, 1, 1, None, 0)
        head = int.from_bytes(self.rings[self.head : self.head + 4], "little")
        result = struct.unpack_from("<i", self.rings, self.results + 16 * (head & 7) + 8)[0]
        self.rings[self.head : self.head + 4] = struct.pack("<I", head + 1)
        return result
"""

ATTACKS = (
    Attack(
        name="TCP to the host",
        program="""
for family, address in ((socket.AF_INET, ("127.0.0.1", HOST["tcp"])), (socket.AF_INET6, ("::1", HOST["tcp6"])),
                        (socket.AF_INET6, ("::ffff:127.0.0.1", HOST["tcp"])), (socket.AF_INET, ("0.0.0.0", HOST["tcp"]))):
    client = attempt(socket.socket, family)
    if client is None or not address[1]: continue
    client.settimeout(2)
    attempt(client.connect, address)
    loot(attempt(client.recv, 100))
""",
    ),
    Attack(
        name="TCP without connect()",
        program="""
MSG_FASTOPEN = 0x20000000
client = attempt(socket.socket)
if client:
    client.settimeout(2)
    attempt(client.sendto, b"hello", MSG_FASTOPEN, ("127.0.0.1", HOST["tcp"]))
    loot(attempt(client.recv, 100))
""",
        control_needs="int(slurp('/proc/sys/net/ipv4/tcp_fastopen')) & 1",
    ),
    Attack(
        name="TCP over several paths, and other protocols for streams",
        program="""
for protocol in (262, 132, 256, 33):
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, 6):
        client = attempt(socket.socket, socket.AF_INET, kind, protocol)
        if client is None: continue
        client.settimeout(2)
        attempt(client.connect, ("127.0.0.1", HOST["tcp"]))
        loot(attempt(client.recv, 100))
""",
        control_needs="socket.socket(2, 1, 262)",
    ),
    Attack(
        name="UDP to the host",
        program="""
for protocol, port in ((0, HOST["udp"]), (136, HOST["udplite"])):
    client = attempt(socket.socket, socket.AF_INET, socket.SOCK_DGRAM, protocol)
    if client is None or port is None: continue
    client.settimeout(2)
    attempt(client.sendto, b"hello", ("127.0.0.1", port))
    loot(attempt(client.recv, 100))
""",
    ),
    Attack(
        name="tools of the system",
        program="""
import subprocess
port = HOST["tcp"]
for command in (["bash", "-c", f"cat < /dev/tcp/127.0.0.1/{port}"], ["curl", "-sm2", "--http0.9", f"http://127.0.0.1:{port}"],
                ["perl", "-MIO::Socket::INET", "-e", f"print IO::Socket::INET->new('127.0.0.1:{port}')->getline"],
                ["nc", "127.0.0.1", str(port)], [sys.executable or "python3", "-Ic",
                 f"import socket; print(socket.create_connection(('127.0.0.1', {port}), 2).recv(100))"]):
    done = attempt(subprocess.run, command, capture_output=True, stdin=subprocess.DEVNULL)
    if done: loot(done.stdout)
""",
    ),
    Attack(
        name="abstract unix sockets",
        program="""
for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
    client = attempt(socket.socket, socket.AF_UNIX, kind) or attempt(lambda: socket.socketpair(socket.AF_UNIX, kind)[0])
    if client is None: continue
    client.settimeout(2)
    attempt(client.connect, "\\0" + HOST["abstract"])
    loot(attempt(client.recv, 100) if attempt(client.getpeername) else None)
""",
    ),
    Attack(
        name="datagrams to abstract names, from a socket that came as a pair",
        program="""
name = b"\\0" + HOST["abstract_datagrams"].encode()
for ours in (attempt(socket.socket, socket.AF_UNIX, socket.SOCK_DGRAM),
             attempt(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0])):
    if ours is None: continue
    attempt(ours.sendto, b"hello", name)
    attempt(ours.sendmsg, [b"hello"], [], 0, name)
    attempt(ours.connect, name)
    attempt(ours.send, b"hello")
""",
    ),
    Attack(
        name="unix sockets by their paths",
        program="""
path = HOST["path_socket"]
for name in (path, *(f"/proc/{pid}/root{path}" for pid in PIDS), f"/proc/{HOST['pid']}/cwd/../socket", "/run/docker.sock",
             "/var/run/docker.sock", "/run/containerd/containerd.sock", "/run/dbus/system_bus_socket", "/run/systemd/private"):
    client = attempt(socket.socket, socket.AF_UNIX)
    if client is None: continue
    client.settimeout(2)
    if attempt(client.connect, name) is None and attempt(client.getpeername) is None: continue
    loot(attempt(client.recv, 100) if name.endswith("/socket") else None)
    if not name.endswith("/socket"): escaped("connected to", name)
""",
    ),
    Attack(
        name="a service for the neighbours",
        program="""
server = attempt(socket.socket) or attempt(lambda: socket.socketpair()[0])
if server:
    attempt(server.bind, ("127.0.0.1", 40000 + HOST["pid"] % 20000))
    attempt(server.listen)
abstract = attempt(socket.socket, socket.AF_UNIX) or attempt(lambda: socket.socketpair()[0])
if abstract:
    attempt(abstract.bind, "\\0" + MARK)
    attempt(abstract.listen)
""",
        check="""
client = attempt(socket.socket)
if client:
    try: client.connect(("127.0.0.1", 40000 + HOST["pid"] % 20000)); escaped("the neighbour connected")
    except OSError: pass
client = attempt(socket.socket, socket.AF_UNIX)
if client:
    try: client.connect("\\0" + MARK); escaped("the neighbour connected")
    except OSError: pass
""",
    ),
    Attack(
        name="the host's interfaces and addresses",
        program="""
seen = slurp("/proc/net/dev") + slurp("/proc/net/arp") + slurp("/proc/net/route") + slurp("/proc/net/unix")
for name in attempt(os.listdir, "/sys/class/net") or (): seen += slurp(f"/sys/class/net/{name}/address")
route = attempt(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, 0)
if route:
    for kind in (18, 22):  # all links, all addresses
        attempt(route.send, struct.pack("IHHIIB3x", 20, kind, 0x301, 1, 0, 0))
        seen += b"".join(":".join(f"{byte:02x}" for byte in part[i : i + 6]).encode() for part in [attempt(route.recv, 65536) or b""]
                         for i in range(0, len(part), 4))
for address in HOST["addresses"]:
    if address.encode() in seen: escaped("the host has", address)
if HOST["abstract"].encode() in seen: escaped("sees the host's sockets")
up = [line.split(":")[0].strip() for line in slurp("/proc/net/dev").decode().splitlines()[2:]]
if set(up) - {"lo"}: escaped("has interfaces", up)
""",
    ),
    Attack(
        name="raw packets",
        program="""
for family, kind, protocol in ((17, socket.SOCK_RAW, 0x300), (17, socket.SOCK_DGRAM, 0x300), (2, socket.SOCK_RAW, 1), (10, socket.SOCK_RAW, 58),
                               (2, socket.SOCK_DGRAM, 1), (2, socket.SOCK_RAW, 255), (44, socket.SOCK_RAW, 0)):
    if attempt(socket.socket, family, kind, protocol): escaped("a raw socket of family", family)
""",
        control_needs_root=True,
    ),
    Attack(
        name="the hypervisor",
        program="""
AF_VSOCK = 40
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
    if attempt(socket.socket, AF_VSOCK, kind): escaped("a socket to the hypervisor")
if slurp("/dev/vsock", 1) or attempt(os.open, "/dev/vsock", os.O_RDONLY): escaped("opens /dev/vsock")
""",
        control_needs="socket.socket(40, 1)",
    ),
    Attack(
        name="families of sockets that few have heard of",
        program="""
for family in range(1, 50):
    for kind in (socket.SOCK_RAW, socket.SOCK_DGRAM, socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_RDM):
        if family not in (1, 2, 10) and attempt(socket.socket, family, kind, 0): escaped("a socket of family", family)
    if family != 1 and attempt(lambda: socket.socketpair(family, socket.SOCK_STREAM)): escaped("a pair of family", family)
""",
    ),
    Attack(
        name="32-bit system calls",
        program=MACHINE_CODE
        + """
if not ARM:
    SOCKETCALL, SOCKET, CONNECT = 102, 1, 3
    fd = int80(SOCKETCALL, SOCKET, in_low_memory(struct.pack("<3I", 2, 1, 0)))
    name = in_low_memory(struct.pack("<HH4s8x", 2, socket.htons(HOST["tcp"]), bytes([127, 0, 0, 1])))
    if fd >= 0 and int80(SOCKETCALL, CONNECT, in_low_memory(struct.pack("<3I", fd, name, 16))) == 0: loot(os.read(fd, 100))
""",
        ends=("killed",),
        control_needs="not ARM and os.path.exists('/proc/sys/abi/vsyscall32')",
    ),
    Attack(
        name="x32 system calls",
        program="""
X32 = 0x40000000
if not ARM and syscall(X32 + NUMBERS["getpid"][0]) == os.getpid(): escaped("makes x32 calls")
fd = syscall(X32 + 41, 2, 1, 0) if not ARM else -1
if fd >= 0: escaped("an x32 socket")
""",
        ends=("killed",),
        control=None,
        why="common kernels have no x32 calls",
    ),
    Attack(
        name="connecting through an io_uring",
        program=RING
        + """
SOCKET, CONNECT = 45, 16
ring = attempt(Ring)
if ring:
    fd = ring.call(SOCKET, 2, offset=1)
    name = ctypes.create_string_buffer(struct.pack("<HH4s8x", 2, socket.htons(HOST["tcp"]), bytes([127, 0, 0, 1])))
    if fd >= 0 and ring.call(CONNECT, fd, offset=16, address=ctypes.addressof(name)) == 0: loot(os.read(fd, 100))
""",
        control_needs="syscall('io_uring_setup', 4, ctypes.create_string_buffer(120)) >= 0",
    ),
)
