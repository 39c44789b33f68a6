#!/usr/bin/env python3
"""The bench's files, the same bytes on every machine.

    workload.py make FOLDER MIB     60 % that do not compress, 30 % text, the rest logs, JSON and sparse or repetitive
                                    files; some 10,000 tiny files for each GiB, links, modes and times of all kinds
    workload.py change FOLDER SAVE  the second day: about 1 % of the bytes and of the files change, come or go; what is
                                    replaced is kept in SAVE
    workload.py undo FOLDER SAVE    the first day again, times included
    workload.py compare A B         bytes, kinds, modes, owners, link targets and times of two trees
    workload.py state FOLDER        one line for each entry, for a comparison without the second tree
"""
import hashlib
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
    lines = []
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
            lines.append(f"{os.path.relpath(path, root)} {s.st_mode:o} {s.st_uid} {s.st_gid} {s.st_mtime_ns} {nlink} {what}")
    return lines


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
            a, b = state(a), state(b)
            if a != b:
                sys.exit("the trees differ: " + "; ".join(sorted(set(a) ^ set(b))[:6]))
        case _:
            sys.exit(__doc__)


main()
