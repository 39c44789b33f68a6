#!/usr/bin/env python3
"""The bench's files, the same bytes on every machine.

    workload.py make FOLDER MIB     60 % that do not compress, 30 % text, the rest logs, JSON and sparse or repetitive
                                    files; some 10,000 tiny files for each GiB, links, modes and times of all kinds
    workload.py change FOLDER SAVE  the second day: about 1 % of the bytes and of the files change, come or go; what is
                                    replaced is kept in SAVE
    workload.py undo FOLDER SAVE    the first day again, times included
    workload.py compare A B         bytes, kinds, modes, owners, link targets and times of two trees
    workload.py state FOLDER        one line for each entry, for a comparison without the second tree
    workload.py million FOLDER N    N small files, some 1,000 in each folder
    workload.py stream GIB          to standard output: 60 % noise, 25 % text, 10 % lines of a log, 5 % zeros, in pieces of 1 MiB
    workload.py redis MIB           to standard output: commands that fill a Redis, for `redis-cli --pipe`
"""
import hashlib
import itertools
import json
import os
import random
import shutil
import stat
import sys

LETTERS = b"abcdefghijklmnopqrstuvwxyz"
NOW = 1_790_000_000


class Maker:
    def __init__(self, root, mib):
        self.root, self.left = root, {}
        total = mib << 20
        self.left = {"noise": total * 60 // 100, "text": total * 30 // 100, "other": total * 10 // 100}
        self.tiny = max(200, mib * 10)
        self.random = random.Random(20_260_101)
        weights = [1 / (n + 2) for n in range(30_000)]
        sums, s = [], 0.0
        for w in weights:
            s += w
            sums.append(s)
        self.weights = sums
        pick = random.Random(7)
        self.words = [bytes(pick.choices(LETTERS, k=pick.randint(2, 10))) for _ in range(30_000)]

    def text(self, size):
        out, n = [], 0
        while n < size:
            line = b" ".join(self.random.choices(self.words, cum_weights=self.weights, k=400))
            out.append(line)
            n += len(line) + 1
        return b"\n".join(out)[:size]

    def log(self, size):
        out, n, at = [], 0, NOW
        r = self.random
        while n < size:
            at += r.randint(0, 3)
            line = b"%d 10.0.%d.%d GET /%s/%d %d %d\n" % (
                at, r.randint(0, 3), r.randint(1, 254), r.choice(self.words[:200]), r.randint(1, 9999),
                r.choice((200, 200, 200, 304, 404)), r.randint(100, 90_000))
            out.append(line)
            n += len(line)
        return b"".join(out)[:size]

    def records(self, size):
        out, n, r = [], 0, self.random
        while n < size:
            line = json.dumps({"id": r.getrandbits(48), "name": r.choice(self.words).decode(), "total": r.randint(1, 10**6) / 100,
                               "tags": [w.decode() for w in r.choices(self.words[:50], k=3)]}).encode() + b"\n"
            out.append(line)
            n += len(line)
        return b"".join(out)[:size]

    def put(self, path, content):
        path = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as out:
            out.write(content)
        os.chmod(path, self.random.choice((0o644, 0o644, 0o644, 0o640, 0o600, 0o755)))
        self.old(path)

    def old(self, path):
        at = (NOW - self.random.randint(10**5, 10**8)) * 10**9 + self.random.randint(0, 10**9 - 1)
        os.utime(path, ns=(at, at), follow_symlinks=False)

    def size(self, least, most):
        """Most are small, most bytes are in large ones."""
        return int(least * (most / least) ** self.random.random())

    def make(self):
        r, n = self.random, 0
        while self.left["noise"] > 0:
            size = min(self.left["noise"], self.size(60_000, 24 << 20))
            self.put(f"media/{n // 60:03}/{n:05}.jpg", r.randbytes(size))
            self.left["noise"] -= size
            n += 1
        for t in range(self.tiny):
            kind = r.random()
            content = self.text(r.randint(20, 5_000)) if kind < 0.8 else r.randbytes(r.randint(20, 5_000))
            self.put(f"tree/{t // 1000:02}/{t // 40 % 25:02}/{t:06}.{'txt' if kind < 0.8 else 'bin'}", content)
            self.left["text"] -= len(content)
        n = 0
        while self.left["text"] > 0:
            size = min(self.left["text"], self.size(8_000, 8 << 20))
            self.put(f"docs/{n // 100:03}/{n:05}.txt", self.text(size))
            self.left["text"] -= size
            n += 1
        n = 0
        while self.left["other"] > 0:
            size = min(self.left["other"], self.size(50_000, 16 << 20))
            kind = n % 4
            if kind == 0:
                self.put(f"log/{n:04}.log", self.log(size))
            elif kind == 1:
                self.put(f"log/{n:04}.json", self.records(size))
            elif kind == 2:
                self.put(f"data/{n:04}.db", (r.randbytes(700) + bytes(3396)) * (size // 4096 + 1))
            else:
                path = f"data/{n:04}.img"
                self.put(path, r.randbytes(4096))
                os.truncate(os.path.join(self.root, path), size)
                self.old(os.path.join(self.root, path))
            self.left["other"] -= size
            n += 1
        for n in range(50):
            link = os.path.join(self.root, f"tree/link-{n}")
            os.symlink(f"00/{n % 25:02}", link)
            self.old(link)
            os.link(os.path.join(self.root, f"tree/00/00/{n % 40:06}.txt") if os.path.exists(
                os.path.join(self.root, f"tree/00/00/{n % 40:06}.txt")) else os.path.join(self.root, "media/000/00000.jpg"),
                os.path.join(self.root, f"tree/hard-{n}"))
        os.makedirs(os.path.join(self.root, "empty/folder"))
        for folder, _, _ in os.walk(self.root, topdown=False):
            self.old(folder)


def files_of(root):
    found = []
    for folder, folders, names in os.walk(root):
        folders.sort()
        found += [os.path.relpath(os.path.join(folder, n), root) for n in sorted(names)]
    return [f for f in found if os.path.isfile(os.path.join(root, f)) and not os.path.islink(os.path.join(root, f))
            and os.lstat(os.path.join(root, f)).st_nlink == 1]


def change(root, save):
    """One file in a hundred: replaced, edited in the middle, longer, or gone; and as many new ones of each kind."""
    r = random.Random(20_260_102)
    files = [f for f in files_of(root)]
    by = {}
    for f in files:
        by.setdefault(f.split("/")[0], []).append(f)
    touched = {"changed": [], "new": [], "folders": {}}
    def remember(path):
        folder = os.path.dirname(path)
        while True:
            s = os.stat(os.path.join(root, folder))
            touched["folders"].setdefault(folder, [s.st_atime_ns, s.st_mtime_ns])
            if not folder:
                return
            folder = os.path.dirname(folder)
    def keep(path):
        remember(path)
        to = os.path.join(save, path)
        os.makedirs(os.path.dirname(to), exist_ok=True)
        shutil.copy2(os.path.join(root, path), to)
        touched["changed"].append(path)
    for top, names in sorted(by.items()):
        some = r.sample(names, max(1, len(names) // 100))
        for n, path in enumerate(some):
            keep(path)
            full = os.path.join(root, path)
            size = os.path.getsize(full)
            if n % 4 == 3:
                os.remove(full)
                continue
            if n % 4 == 0 and size < 4 << 20:
                with open(full, "wb") as out:
                    out.write(r.randbytes(size) if top == "media" else b" ".join(r.choices([b"new", b"day", b"word", b"text"], k=size // 5)))
            elif n % 4 == 1:
                with open(full, "r+b") as out:
                    out.seek(size // 2)
                    out.write(r.randbytes(min(2000, size)))
            else:
                with open(full, "ab") as out:
                    out.write(r.randbytes(3000))
        for n in range(max(1, len(names) // 200)):
            path = os.path.join(os.path.dirname(r.choice(names)), f"new-{n:04}.{top}")
            remember(path)
            content = r.randbytes(r.randint(1000, 400_000)) if top == "media" else b"\n".join(
                b"%d %s" % (r.getrandbits(40), bytes(r.choices(LETTERS, k=40))) for _ in range(r.randint(2, 90)))
            with open(os.path.join(root, path), "wb") as out:
                out.write(content)
            touched["new"].append(path)
    with open(os.path.join(save, "touched.json"), "w") as out:
        json.dump(touched, out)


def undo(root, save):
    with open(os.path.join(save, "touched.json")) as read:
        touched = json.load(read)
    for path in touched["new"]:
        os.remove(os.path.join(root, path))
    for path in touched["changed"]:
        shutil.copy2(os.path.join(save, path), os.path.join(root, path))
    for folder, (at, mt) in sorted(touched["folders"].items(), reverse=True):
        os.utime(os.path.join(root, folder), ns=(at, mt))
    shutil.rmtree(save)


def state(root):
    """One line for each entry."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in ["."] + sorted(set(names) | {f for f in folders if os.path.islink(os.path.join(folder, f))}):
            path = os.path.join(folder, name) if name != "." else folder
            s = os.lstat(path)
            what = os.readlink(path) if stat.S_ISLNK(s.st_mode) else ""
            if stat.S_ISREG(s.st_mode):
                with open(path, "rb") as read:
                    what = hashlib.file_digest(read, "blake2b").hexdigest()
            nlink = s.st_nlink if stat.S_ISREG(s.st_mode) else 0
            yield f"{os.path.relpath(path, root)} {s.st_mode:o} {s.st_uid} {s.st_gid} {s.st_mtime_ns} {nlink} {what}"


def compare(a, b):
    """Entry by entry, so that a million of them take no memory; only what differs is gathered."""
    if all(x == y for x, y in itertools.zip_longest(state(a), state(b))):
        return
    sys.exit("the trees differ: " + "; ".join(sorted(set(state(a)) ^ set(state(b)))[:6]))


def million(root, count):
    """Pages, thumbnails, sessions: 20 to 1,500 bytes, three of four of them text, all different."""
    r, pool = random.Random(20_260_103), Maker(root, 0)
    text, noise = pool.text(1 << 20), r.randbytes(1 << 20)
    old = (NOW - 10**6) * 10**9
    for n in range(count):
        folder = os.path.join(root, f"{n // 100_000:02}/{n // 1000 % 100:02}")
        if n % 1000 == 0:
            os.makedirs(folder)
        size, at = r.randint(20, 1500), r.randrange(1 << 19)
        kind, source = ("bin", noise) if n % 4 == 0 else ("txt", text)
        path = os.path.join(folder, f"{n:07}.{kind}")
        with open(path, "wb", buffering=0) as out:
            out.write(b"%07d " % n + source[at:at + size])
        os.utime(path, ns=(old + n * 1001, old + n * 1001))
    os.makedirs(os.path.join(root, "empty/folder"))


def stream(gib):
    """Fast, so that not the making is measured: noise is three blocks by XOR, another three each time; the rest is put
    together of short pieces in an order that does not come again, so that a window finds them, and a chunk does not."""
    block, r, maker = 256 << 10, random.Random(20_260_104), Maker("", 0)
    maker.random = r
    many = 64
    if gib > 100:
        sys.exit("the noise lasts for 100 GiB")
    a, b, c = ([int.from_bytes(r.randbytes(block), "little") for _ in range(many)] for _ in range(3))
    noise = ((x ^ y ^ z).to_bytes(block, "little") for x, y, z in itertools.product(a, b, c))
    pieces = {}
    for kind, long in (("text", maker.text(4 << 20)), ("log", maker.log(4 << 20))):
        pieces[kind] = [long[at:at + 2048] for at in range(0, len(long), 2048)]
    kinds = ["noise"] * 12 + ["text"] * 5 + ["log"] * 2 + ["zeros"]
    out = sys.stdout.buffer
    for n in range(gib << 10):
        if n % len(kinds) == 0:
            r.shuffle(kinds)
        kind = kinds[n % len(kinds)]
        for _ in range(4):
            if kind == "noise":
                out.write(next(noise))
            elif kind == "zeros":
                out.write(bytes(block))
            else:
                out.write(b"".join(r.choices(pieces[kind], k=block // 2048)))


def redis(mib):
    r, out = random.Random(9), sys.stdout.buffer
    def put(*words):
        out.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
    words = [bytes(r.choices(b"abcdefghijklmnop", k=7)) for _ in range(5000)]
    left, n = mib << 20, 0
    while left > 0:
        value = r.randbytes(300) if n % 2 else b" ".join(r.choices(words, k=60))
        put(b"SET", b"session:%d" % n, value)
        put(b"HSET", b"user:%d" % (n % 50000), b"f%d" % (n % 7), value[:40])
        left -= len(value) + 100
        n += 1


def main():
    match sys.argv[1:]:
        case ["make", folder, mib]:
            Maker(folder, int(mib)).make()
        case ["change", folder, save]:
            change(folder, save)
        case ["undo", folder, save]:
            undo(folder, save)
        case ["state", folder]:
            print("\n".join(state(folder)))
        case ["compare", a, b]:
            compare(a, b)
        case ["million", folder, count]:
            million(folder, int(count))
        case ["stream", gib]:
            stream(int(gib))
        case ["redis", mib]:
            redis(int(mib))
        case _:
            sys.exit(__doc__)


main()
