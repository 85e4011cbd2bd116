"""Generate `scheduler/wire` from `proto/lepton/v1`; `--check` only says if it is up to date.

Reads the .proto files and yields messages, gRPC stubs and their types. The generated code is
committed, so that using Lepton needs no compiler.
"""

import argparse
import filecmp
import re
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTO = Path(__file__).resolve().parent
WIRE = PROTO.parent / "scheduler" / "wire"
BIN = Path(sys.executable).parent
HEADER = '"""Generated from proto/lepton/v1 by proto/generate.py; never edited."""\n'


def generate(folder: Path) -> None:
    """Write every generated file into `folder`."""
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.glob("lepton/v1/*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        outputs = [f"--{kind}_out={scratch}" for kind in ("python", "grpc_python", "mypy")]
        outputs.append(f"--mypy_grpc_out={scratch}")
        # Beside this interpreter, which need not be on PATH.
        outputs += [
            f"--plugin={BIN / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
        ]
        well_known = f"-I{files('grpc_tools') / '_proto'}"
        if protoc.main(["protoc", f"-I{PROTO}", well_known, *outputs, *sources]):
            sys.exit("protoc failed")
        (folder / "__init__.py").write_text(HEADER)
        for path in sorted(Path(scratch).glob("lepton/v1/*")):
            (folder / path.name).write_text(_at_home(path.read_text()))


def _at_home(source: str) -> str:
    """Import siblings from `scheduler.wire`: protoc derives imports from the proto path."""
    return re.sub(r"\blepton\.v1 import|\blepton\.v1\.(?=\w+_pb2)", _moved, source)


def _moved(match: re.Match[str]) -> str:
    return match.group().replace("lepton.v1", "scheduler.wire")


def differences(folder: Path) -> list[str]:
    """Return the names of files that differ between `folder` and `scheduler/wire`."""
    names = {path.name for root in (folder, WIRE) for path in root.glob("*.py*")}
    _, changed, missing = filecmp.cmpfiles(folder, WIRE, sorted(names), shallow=False)
    return changed + missing


def main() -> None:
    """Write the wire code, or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 on a diff")
    if not parser.parse_args().check:
        WIRE.mkdir(exist_ok=True)
        generate(WIRE)
        return
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        if stale := differences(Path(scratch)):
            sys.exit(f"scheduler/wire is not up to date ({', '.join(stale)}): run make wire")


if __name__ == "__main__":
    main()
