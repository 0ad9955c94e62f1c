"""The warden: the trusted parent of a session and of the session's live copies, one small process for each family.

It is cloned off the zygote and holds no data. In namespaces it is process 1 of the family's, so that a copy does not
end with what it was copied from; elsewhere it is where everything that loses its parent returns to. It makes the place
of the session and those of the copies; the copies themselves are forked by the session, as the warden's children. It
ends when the supervisor hangs up, and its family with it.

Besides what every keeper does:

    W n          open the workspace of member n: `W n` and a descriptor
    C n m...     make places for copies m of member n: `C m place`, with a descriptor of the root where the copy has one
                 of its own, and one of rules of Landlock where there are any; then `D n place` and rules: where n
                 itself is from then on. `F n text` if that fails
    A m pid      child `pid` is member m: `A m`, or `F m text` if it is not
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat

from . import copying, kernel, trees, wire
from .keeper import Keeper
from .modes_and_times import Changes, Folder
from .places import CLOSED, OPEN, Place, make_folders

TYPE_CHECKING = False  # `typing` stays out of the zygote
if TYPE_CHECKING:
    from typing import NoReturn

    from .confinement import Confinement
    from .profile import Profile

_LOOK = os.O_PATH | os.O_DIRECTORY
_CHANGED = "the session changed the folders of its copies"


class Member:
    """A session of the family.

    Args:
        place: Where its files are.
        root: Descriptor of its root directory; -1 where it has the warden's own.
        namespace: Descriptor of the mount namespace that the root lives in.
        base: Descriptor of the folder that a copy's folders are in, where it has no root of its own.
    """

    def __init__(self, place: Place, root: int = -1, namespace: int = -1, base: int = -1) -> None:
        self.place, self.root, self.namespace, self.base = place, root, namespace, base

    def open(self, path: str) -> int:
        """Gives a descriptor of one of its folders."""
        if self.root >= 0:
            return os.open(path[1:], _LOOK, dir_fd=self.root)
        if self.base >= 0:
            inner = path.removeprefix(os.path.dirname(self.place.home) + "/")
            return os.open(inner, _LOOK | os.O_NOFOLLOW, dir_fd=self.base)
        return os.open(path, _LOOK)

    def close(self) -> None:
        """Closes the descriptors, which ends the mounts."""
        for fd in (self.root, self.namespace, self.base):
            if fd >= 0:
                os.close(fd)


class Warden(Keeper):
    """Takes orders for one family.

    Args:
        orders: Packet socket to the supervisor.
        confinement: The jail's mode.
        profile: The family's limits.
        number: The first member.
        pid: Its process.
        place: Its place.
    """

    def __init__(
        self, orders: socket.socket, confinement: Confinement, profile: Profile, number: int, pid: int, place: Place
    ) -> None:
        super().__init__(orders)
        self._confinement = confinement
        self._profile = profile
        self._first = place
        self.running[number] = pid
        self._members = {number: Member(place)}
        self._own_namespace = -1
        self._expected: set[int] = set()
        """Copies that have places and are not adopted yet."""
        self._has_strays = False
        self._gets_orphans = not place.reserve or kernel.is_subreaper()
        listener = confinement.listener()
        if listener >= 0:
            self.watch(listener, Changes(listener, self._folders_of).answer)
        self.notice_end(number, pid)

    def serve(self) -> NoReturn:
        """Takes orders until the supervisor hangs up; then ends the family."""
        while True:
            received = self.receive()
            if received is None:
                continue
            order, _ = received
            if not order:
                self._end_family()
            kind, number, text = order.split(b" ", 2)
            self._obey(kind, int(number), text)
            if self.dying:
                self.reap()

    def _obey(self, kind: bytes, number: int, text: bytes) -> None:
        if kind == b"W":
            self._send_workspace(number)
        elif kind == b"C":
            try:
                self._make_places(number, [int(copy) for copy in text.split()])
            except OSError as error:
                self._fail(number, str(error))
        elif kind == b"A":
            self._adopt(number, int(text))
        else:
            self.obey(kind, number)
            if kind in (b"K", b"R") and number in self._members and number not in self.running:
                self._members.pop(number).close()
                self._expected.discard(number)
                self._kill_strays()

    def end(self, pid: int) -> None:
        """Kills a member with all that it has, and nothing of the others."""
        if not self._gets_orphans:  # then there are no others
            self._confinement.end_family(self._first)
            return
        trees.kill_tree(pid)
        self._has_strays = True
        self._kill_strays()

    def _kill_strays(self) -> None:
        """Kills what dead members left, but not while there may be copies that were born and not adopted yet."""
        if self._has_strays and not self._expected:
            self._has_strays = False
            trees.kill_strays(adopted={*self.running.values(), *self.dying})

    def _end_family(self) -> NoReturn:
        self._confinement.end_family(self._first)
        if self._first.reserve:
            with contextlib.suppress(ChildProcessError):
                while True:
                    os.waitpid(-1, 0)
            copying.remove_tree(os.path.dirname(self._first.home))
        os._exit(0)

    def _send_workspace(self, number: int) -> None:
        member = self._members.get(number)
        try:
            if member is None:
                raise OSError("it has ended")
            fd = member.open(member.place.home)
        except OSError:
            self.orders.send(b"W %d" % number)
            return
        self.send_with(b"W %d" % number, fd)
        os.close(fd)

    def _folders_of(self, pid: int) -> list[Folder] | None:
        """Where a member may change modes and times, if that is a member's process."""
        for number, process in self.running.items():
            if process == pid and number in self._members:
                member = self._members[number]
                return [Folder(member.open(path), path) for path in (member.place.home, member.place.tmp)]
        return None

    def _fail(self, number: int, text: str) -> None:
        self.orders.send(b"F %d %s" % (number, text.encode()))

    # --- copies

    def _make_places(self, number: int, copies: list[int]) -> None:
        member = self._members.get(number)
        if member is None:
            raise OSError("the session has ended")
        if not self._gets_orphans:
            raise OSError("not supported by this kernel, where no process takes in another one's children")
        if member.place.reserve:
            self._make_folders(member, copies)
        else:
            for copy in copies:
                made = self._members[copy] = self._make_root(member)
                self._expected.add(copy)
                self._send_place(b"C", copy, made, 0)
        self._send_place(b"D", number, member, self.running.get(number, 0))

    def _send_place(self, kind: bytes, number: int, member: Member, pid: int) -> None:
        """Tells where a member is, with what its process needs in order to move there."""
        place = member.place
        folders = [member.open(path) for path in (place.home, place.tmp, place.reserve) if path]
        try:
            rules = self._confinement.rules(folders, pid)
        finally:
            for fd in folders:
                os.close(fd)
        fds = [fd for fd in (member.root if kind == b"C" else -1, rules) if fd >= 0]
        self.send_with(b"%s %d %s" % (kind, number, _text_of(place)), *fds)
        if rules >= 0:
            os.close(rules)

    def _make_folders(self, source: Member, copies: list[int]) -> None:
        """Makes folders for copies, and the reserve that is the source's from then on.

        Where the session is the same user as this process, it could put something else in their place while it may
        write there; so they are opened at once, and looked at again when it may not any more.
        """
        place = source.place
        reserve = os.open(place.reserve, _LOOK | os.O_NOFOLLOW)
        os.chmod(f"/proc/self/fd/{reserve}", OPEN)
        try:
            for copy in copies:
                folders, base = make_folders(reserve, str(copy), place.reserve, place.user)
                self._members[copy] = Member(folders, base=base)
                self._expected.add(copy)
            os.mkdir("next", CLOSED, dir_fd=reserve)
        finally:
            os.chmod(f"/proc/self/fd/{reserve}", CLOSED)
        _check_closed(reserve, "next")
        for copy in copies:
            made = self._members[copy]
            if not os.path.samestat(_check_closed(reserve, str(copy)), os.fstat(made.base)):
                raise OSError(_CHANGED)
            for old, new in ((place.home, made.place.home), (place.tmp, made.place.tmp)):
                _copy(source.open(old), made.open(new), place.user)
            self._send_place(b"C", copy, made, 0)
        os.close(reserve)
        place.reserve += "/next"

    def _make_root(self, source: Member) -> Member:
        """Makes a mount namespace that differs from the family's in the member's own folders alone."""
        if self._own_namespace < 0:
            self._own_namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        home, tmp = source.place.home, source.place.tmp
        folders = {path: source.open(path) for path in (home, tmp)}
        kernel.unshare(kernel.CLONE_NEWNS)
        try:
            for path in (home, tmp):
                kernel.unmount(path)
            kernel.perform(self._profile.folders)
            for path in (home, tmp):
                _copy(folders.pop(path), os.open(path, _LOOK), 0)
            return Member(source.place, os.open("/", _LOOK), os.open("/proc/self/ns/mnt", os.O_RDONLY))
        finally:
            for fd in folders.values():
                os.close(fd)
            kernel.enter_namespace(self._own_namespace)

    def _adopt(self, number: int, pid: int) -> None:
        if pid in self.running.values() or not trees.is_child(pid):
            self._fail(number, f"process {pid} is no new child")
            return
        self.running[number] = pid
        self.notice_end(number, pid)
        self._expected.discard(number)
        self._kill_strays()
        self.orders.send(b"A %d" % number)


def _check_closed(parent: int, name: str) -> os.stat_result:
    found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode) or stat.S_IMODE(found.st_mode) != CLOSED:
        raise OSError(_CHANGED)
    return found


def _copy(source: int, target: int, user: int) -> None:
    try:
        copying.copy_tree(source, target, user)
    finally:
        os.close(source)
        os.close(target)


def _text_of(place: Place) -> bytes:
    return wire.dumps([place.home, place.tmp, place.reserve]).encode()
