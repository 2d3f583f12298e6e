"""Packs a built `sae` into an archive and a Python wheel, with the licences of all that is linked into it.

    python3 launch/pack.py BINARY OUT

OUT gets what is then printed: sae-VERSION-ARCH-linux.tar.gz and sae-VERSION-py3-none-manylinux_2_N_ARCH.whl. N is the newest glibc that the binary asks
for, 28 at least, so that pip never installs it where it cannot start. pip puts its program on the PATH, and launch/python/sae where Python looks for
packages. It needs no other package: what that one does is an extra, `sae[python]`, and the program installs where there is no index.
The same binary gives the same files. A script and not maturin: a wheel is one file and what pip wants to know of it, which takes less code than
a build backend takes configuration, and tests can pack their own binary. A binary that needs a library of one machine is refused. Needs cargo, objdump and the standard library. A test packs the binary of the tests.
"""

import base64
import gzip
import hashlib
import io
import json
import pathlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
BASELINE = 28
# 1980 begins: files of a wheel cannot be older, and when they were packed is nobody's concern.
TIME = 315532800
# Libraries that every Linux with glibc has.
EVERYWHERE = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libgcc_s.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
PYTHON = ROOT / "launch/python"


def said_by(*command):
    """What a program prints."""
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def needs(binary):
    """The architecture of a binary, and the newest minor version of glibc 2 that it asks for."""
    told = said_by("objdump", "-p", str(binary))
    foreign = set(re.findall(r"NEEDED\s+(\S+)", told)) - EVERYWHERE
    if foreign:
        sys.exit(f"{binary} needs {', '.join(sorted(foreign))}, which not every machine has")
    versions = [int(minor) for minor in re.findall(r"\bGLIBC_2\.(\d+)", told)]
    if not versions:
        sys.exit(f"{binary} names no version of glibc: a program linked to it does")
    return re.search(r"file format elf64-(?:little)?(\S+)", told)[1].replace("-", "_"), max(versions)


def linked(arch):
    """Packages from elsewhere that the binary holds, as cargo describes them, sorted."""
    asked = ["--format-version", "1", "--locked", "--offline", "--filter-platform", f"{arch}-unknown-linux-gnu"]
    metadata = json.loads(said_by("cargo", "metadata", *asked))
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    reached = set()
    ahead = [node for node in nodes if packages[node]["name"] == "launch"]
    while ahead:
        node = ahead.pop()
        if node not in reached:
            reached.add(node)
            ahead += [to["pkg"] for to in nodes[node]["deps"] if any(kind["kind"] is None for kind in to["dep_kinds"])]
    return sorted((packages[node] for node in reached if packages[node]["source"]), key=lambda package: (package["name"], package["version"]))


def notices(arch):
    """What the licences of linked packages ask to be passed on; texts that several share stand once."""
    texts = {}
    for package in linked(arch):
        folder = pathlib.Path(package["manifest_path"]).parent
        title = f"{package['name']} {package['version']} ({package['license']})"
        files = [file for file in sorted(folder.iterdir()) if re.match(r"(?i)(licen[cs]e|copying|notice)", file.name) and file.is_file()]
        for text in [file.read_text(errors="replace").strip() for file in files] or ["(the package holds no text of its licence)"]:
            texts.setdefault(text, []).append(title)
    line = "=" * 80
    return "\n\n".join(f"{line}\n" + "\n".join(titles) + f"\n{line}\n\n{text}" for text, titles in texts.items()) + "\n"


def archive(path, files, name):
    """Writes a .tar.gz in which every file lies below `name`."""
    # Python's own gzip would write the time of day into the file's head.
    packed = gzip.GzipFile(path, "wb", compresslevel=6, mtime=TIME)
    with packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for inside, content in files.items():
            entry = tarfile.TarInfo(f"{name}/{inside}")
            entry.size, entry.mtime, entry.mode = len(content), TIME, 0o755 if inside == "sae" else 0o644
            tar.addfile(entry, io.BytesIO(content))


def package(version):
    """The files of the Python package, and what its pyproject.toml asks of other packages, as METADATA has it."""
    with open(PYTHON / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    if project["version"] != version:
        sys.exit(f"launch/python/pyproject.toml has version {project['version']}, and the program {version}")
    about = f"Summary: {project['description']}\nLicense-Expression: {project['license']}\nRequires-Python: {project['requires-python']}\n"
    for extra, needed in project["optional-dependencies"].items():
        about += f"Provides-Extra: {extra}\n" + "".join(f"Requires-Dist: {one}; extra == '{extra}'\n" for one in needed)
    sources = sorted(file for file in (PYTHON / "sae").iterdir() if file.suffix == ".py" or file.name == "py.typed")
    return {f"sae/{file.name}": file.read_bytes() for file in sources}, about


def wheel(path, files, version, tag):
    """Writes a wheel: the program, the Python package, what pip wants to know of them, and the hash of each file."""
    modules, asks = package(version)
    about = f"Metadata-Version: 2.4\nName: sae\nVersion: {version}\n{asks}"
    about += "".join(f"License-File: {file}\n" for file in files if file.startswith(("LICENSE", "THIRD")))
    about += "Description-Content-Type: text/markdown\n\n" + files["README.md"].decode()
    info, data = f"sae-{version}.dist-info", f"sae-{version}.data"
    inside = modules | {f"{data}/scripts/sae": files["sae"], f"{info}/METADATA": about.encode()}
    inside[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: launch/pack.py\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    inside |= {f"{info}/licenses/{file}": files[file] for file in files if file.startswith(("LICENSE", "THIRD"))}
    digest = lambda content: base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    record = "".join(f"{name},sha256={digest(content)},{len(content)}\n" for name, content in inside.items())
    inside[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as zipped:
        for name, content in inside.items():
            entry = zipfile.ZipInfo(name)
            # pip makes executable what says that it is a regular file and executable.
            entry.external_attr = (0o100755 if name == f"{data}/scripts/sae" else 0o100644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            zipped.writestr(entry, content)


def main():
    binary, out = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    arch, minor = needs(binary)
    with open(ROOT / "Cargo.toml", "rb") as manifest:
        version = tomllib.load(manifest)["workspace"]["package"]["version"]
    files = {file: (ROOT / file).read_bytes() for file in ["README.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT"]}
    files |= {f"recipes/{file.name}": file.read_bytes() for file in sorted((ROOT / "launch/recipes").iterdir()) if file.is_file()}
    files |= {"THIRD-PARTY-LICENSES": notices(arch).encode(), "sae": binary.read_bytes()}
    tag = f"py3-none-manylinux_2_{max(BASELINE, minor)}_{arch}"
    packed = out / f"sae-{version}-{arch}-linux.tar.gz", out / f"sae-{version}-{tag}.whl"
    archive(packed[0], files, f"sae-{version}-{arch}-linux")
    wheel(packed[1], files, version, tag)
    print(*packed, sep="\n")


main()
