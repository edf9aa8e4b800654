"""kube-apiserver and kube-controller-manager, built from the source package of this machine's own distribution.

Nothing is installed: the package lists, the source and what Go makes of it are in a folder of their own, and only the
two programs are left there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from _peers import PEERS, PeerFailed

HOME = PEERS / "kubernetes"
BINARIES = ("kube-apiserver", "kube-controller-manager")
#: What a build needs, and the package that has it.
BUILD_NEEDS = {"go": "golang-go", "rsync": "rsync", "jq": "jq", "make": "make", "gcc": "gcc", "dpkg-source": "dpkg-dev"}
APT = Path("/etc/apt")


def binary(name: str) -> Path:
    return HOME / "bin" / name


def build() -> None:
    """Unless they are there; about a quarter of an hour on two cores. Raises PeerFailed, CalledProcessError."""
    if all(binary(each).exists() for each in BINARIES):
        return
    missing = [package for tool, package in BUILD_NEEDS.items() if shutil.which(tool) is None]
    if missing:
        raise PeerFailed(f"kubernetes: a build needs packages that are not installed: {' '.join(missing)}")
    source = _fetched()
    _renew_reflect2(source)
    environment = {"PATH": os.environ["PATH"], "HOME": str(HOME), "GOPATH": str(HOME / "go"), "GO111MODULE": "auto"}
    environment |= {"GOPROXY": "off", "GOTOOLCHAIN": "local", "KUBE_GIT_VERSION": _version(source)}
    environment |= {"KUBE_GIT_COMMIT": "debian", "KUBE_GIT_TREE_STATE": "archive"}
    what = " ".join(f"cmd/{each}" for each in BINARIES)
    subprocess.run(["make", "all", f"WHAT={what}", "GOLDFLAGS=-s -w"], cwd=source, env=environment, check=True)
    (HOME / "bin").mkdir(exist_ok=True)
    for each in BINARIES:
        shutil.copy2(source / "_output" / "local" / "go" / "bin" / each, binary(each))
    for folder in (source, HOME / "go", HOME / ".cache"):  # several GB
        shutil.rmtree(folder, ignore_errors=True)


def _fetched() -> Path:
    """The unpacked source."""
    lists, downloads, source = HOME / "lists", HOME / "download", HOME / "source"
    for each in (lists / "partial", downloads):
        each.mkdir(parents=True, exist_ok=True)
    told = {"Dir::Etc::sourcelist": _source_list(), "Dir::Etc::sourceparts": "-", "Dir::State::lists": lists}
    told |= {"Dir::Cache": HOME / "cache", "APT::Sandbox::User": ""}
    options = [part for name, value in told.items() for part in ("-o", f"{name}={value}")]
    subprocess.run(["apt-get", *options, "update"], check=True)
    for each in (source, downloads):  # of a try before
        shutil.rmtree(each, ignore_errors=True)
    downloads.mkdir()
    subprocess.run(["apt-get", *options, "source", "--download-only", "kubernetes"], cwd=downloads, check=True)
    description = next(downloads.glob("kubernetes_*.dsc"))
    subprocess.run(["dpkg-source", "--no-check", "-x", str(description), str(source)], check=True)
    return source


def _renew_reflect2(source: Path) -> None:
    """With the package that was made of it: what 1.20 brings along reads Go's maps as they were before Go 1.18, and the
    server dies of the first custom resource."""
    folder, inside = HOME / "reflect2", Path("github.com/modern-go/reflect2")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    subprocess.run(["apt-get", "download", "golang-github-modern-go-reflect2-dev"], cwd=folder, check=True)
    subprocess.run(["dpkg", "-x", str(next(folder.glob("*.deb"))), str(folder)], check=True)
    brought = source / "vendor" / inside
    shutil.rmtree(brought)
    shutil.copytree(folder / "usr" / "share" / "gocode" / "src" / inside, brought)


def _source_list() -> Path:
    """This machine's own apt sources of its own release, asked for source packages. Raises PeerFailed."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    codename = release.get("VERSION_CODENAME", "").strip('"')
    stanzas = [part for file in sorted(APT.glob("sources.list.d/*.sources")) for part in _stanzas(file.read_text())]
    for file in (APT / "sources.list", *sorted(APT.glob("sources.list.d/*.list"))):
        lines = file.read_text().splitlines() if file.exists() else []
        stanzas += [stanza for line in lines if (stanza := _stanza_of(line))]
    mine = dict.fromkeys(found for each in stanzas if (found := _of_release(each, codename)))
    if not mine:
        raise PeerFailed(f"kubernetes: no apt source of {codename or 'this system'} is known in {APT}")
    told = HOME / "source.sources"
    told.write_text("\n".join(mine))
    return told


def _of_release(stanza: str, codename: str) -> str:
    """Its sources of that release alone, which another may stand beside; "" where it has none."""
    found = re.search(r"^Suites:(.*)$", stanza, re.MULTILINE)
    suites = [each for each in found[1].split() if each.partition("-")[0] == codename] if found and codename else []
    asked = re.sub(r"^Types:.*$", "Types: deb-src", stanza, flags=re.MULTILINE)
    return re.sub(r"^Suites:.*$", f"Suites: {' '.join(suites)}", asked, flags=re.MULTILINE) if suites else ""


def _stanzas(text: str) -> list[str]:
    """Of a file of deb822's form."""
    found = ("\n".join(line for line in each.splitlines() if not line.startswith("#")) for each in text.split("\n\n"))
    return [f"{each.strip()}\n" for each in found if "Types:" in each]


def _stanza_of(line: str) -> str:
    """The same of a line as it was written before; "" of any other."""
    found = re.match(r"deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+(.+)$", line.strip())
    if found is None:
        return ""
    options, uri, suite, components = found.groups()
    signed = re.search(r"signed-by=(\S+)", options or "")
    by = f"Signed-By: {signed[1]}\n" if signed else ""
    return f"Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: {components}\n{by}"


def _version(source: Path) -> str:
    """As its own programs say it: Debian's 1.20.5+really1.20.2-1.1 is v1.20.2."""
    first = (source / "debian" / "changelog").read_text().split(")", 1)[0].rpartition("(")[2]
    return f"v{re.sub(r'^.*really|-[^-]*$', '', first)}"
