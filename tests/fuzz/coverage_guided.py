"""``python -m tests.fuzz.coverage_guided``: coverage-guided fuzzing of every reader with atheris.

The mutators of ``test_readers`` start from whole files and try what is nearly right. libFuzzer,
which atheris drives, keeps every input that reaches new code and starts again from it. Each target
runs in a process of its own, so that a crash of native code ends one target and not the run.

A finding is an exception that the reader is not documented to raise, more than a second of
processor time, memory above the limit, or a crash. Its input is written to ``--findings``. Make a
regression test of each.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

_MAX_CPU_SECONDS = 1.0
_MAX_RSS_MIB = 1536
_HANG_SECONDS = 60  # of wall time, on a busy machine
_MAX_INPUT = 64 * 1024
_EACH = "MULTIGRAIN-FINDING"
# Of inputs that the mutators change first: libFuzzer knows neither numbers nor texts.
_SHARE_OF_MUTATORS = 0.3
_DICTIONARY_WORDS = 500
_STUMBLING_BLOCKS = (
    *("-1", "0", "1e999", "NaN", ".inf", "99999999999999999999", "null", "true", "{}", "[]"),
    *("[[[[[[[[", "{{{{{{{{", "&a", "*a", "<<", "!!python", "\\xff", "\\x00", "\\x0a"),
)


def main() -> int:
    """Runs all targets, or those named; returns 1 if there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="of each target")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--corpus", type=Path, help="keep interesting inputs here between runs")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument("targets", nargs="*")
    options = parser.parse_args()
    options.findings.mkdir(parents=True, exist_ok=True)
    if options.child:
        _fuzz(options.targets[0], options.seconds, options.findings, options.corpus)
        return 0
    names = options.targets or _names()
    if options.list:
        print("\n".join(names))
        return 0
    print(f"{'target':22} {'executions':>11} {'coverage':>9} {'features':>9} {'findings':>9}")
    failed = False
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            corpus = (options.corpus or Path(folder)) / name.replace(" ", "-")
            failed |= _run(name, options.seconds, options.findings, corpus)
    return int(failed)


def _names() -> list[str]:
    from tests.fuzz.targets import image_targets, targets

    with tempfile.TemporaryDirectory() as folder:
        return [*(name for name in targets(Path(folder)) if name != "image"), *image_targets()]


def _run(name: str, seconds: float, findings: Path, corpus: Path) -> bool:
    """Runs one target in a child process, again after each crash; prints what came of it."""
    corpus.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    executions = coverage = features = crashes = 0
    found: set[str] = set()
    while (left := end - time.monotonic()) >= 1:
        command = [sys.executable, "-m", "tests.fuzz.coverage_guided", "--child"]
        command += [f"--seconds={left:.0f}", f"--findings={findings}", f"--corpus={corpus}", name]
        run = subprocess.run(command, capture_output=True, text=True, errors="replace")
        found |= set(re.findall(rf"^{_EACH} (.*)$", run.stdout + run.stderr, re.MULTILINE))
        counts = re.findall(r"^#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+)", run.stderr, re.MULTILINE)
        done = re.findall(r"^Done (\d+) runs|number_of_executed_units: (\d+)", run.stderr, re.M)
        if counts:
            executions += max(int(counts[-1][0]), *(int(a or b) for a, b in done or [("0", "")]))
            coverage = max(coverage, int(counts[-1][1]))
            features = max(features, int(counts[-1][2]))
        if run.returncode:
            crashes += 1
            print(run.stderr[-3000:], file=sys.stderr)
        if crashes > 5:
            break
    total = len(found) + crashes
    print(f"{name:22} {executions:11} {coverage:9} {features:9} {total:9}", flush=True)
    for one in sorted(found):
        print(f"  {one}", flush=True)
    return total > 0


def _fuzz(name: str, seconds: float, findings: Path, corpus: Path) -> None:
    """Runs one target in this process until the time is over; never returns."""
    import atheris

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=["multigrain", "multigrain_server", "PIL"]):
        from tests.fuzz.mutate import mutated
        from tests.fuzz.targets import image_targets, targets

    # libFuzzer ends the process, which leaves the folder to the parent's temporary folder.
    folder = Path(tempfile.mkdtemp(dir=corpus.parent))
    target = (image_targets() if name.startswith("image ") else targets(folder))[name]
    seeds = corpus.parent / f"{corpus.name}-seeds"
    seeds.mkdir(exist_ok=True)
    for number, data in enumerate(target.corpus):
        (seeds / str(number)).write_bytes(data)
    known: set[str] = set()

    def report(kind: str, data: bytes) -> None:
        if kind not in known:
            known.add(kind)
            digest = hashlib.sha256(data).hexdigest()[:16]
            (findings / f"{name.replace(' ', '-')}-{digest}").write_bytes(data)
            print(f"{_EACH} {kind} [{digest}]", file=sys.stderr, flush=True)

    def one(data: bytes) -> None:
        begun = time.process_time()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            target(data)
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            report(f"{type(error).__name__} in {Path(at.filename).name}:{at.lineno}", data)
        spent = time.process_time() - begun
        if spent > _MAX_CPU_SECONDS:
            report("more than a second of processor time", data)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if after > before + 512 * 1024:
            report("more than 512 MiB of memory", data)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < _SHARE_OF_MUTATORS:
            data = mutated(data, chance)[:max_size]
        changed: bytes = atheris.Mutate(data, max_size)
        return changed

    words = corpus.parent / f"{corpus.name}.dict"
    words.write_text(_dictionary(target.corpus))
    arguments = [
        sys.argv[0],
        f"-dict={words}",
        f"-max_total_time={max(1, int(seconds))}",
        f"-timeout={_HANG_SECONDS}",
        f"-rss_limit_mb={_MAX_RSS_MIB}",
        f"-max_len={_MAX_INPUT}",
        f"-artifact_prefix={findings}/{name.replace(' ', '-')}-crash-",
        "-print_final_stats=1",
        str(corpus),
        str(seeds),
    ]
    atheris.Setup(arguments, one, custom_mutator=mutate)
    with contextlib.suppress(SystemExit):
        atheris.Fuzz()


def _dictionary(corpus: Sequence[bytes]) -> str:
    """The words of the text in a corpus, and values at which parsers stumble, for libFuzzer."""
    found = {word for data in corpus for word in re.findall(rb"[A-Za-z_]{3,24}", data)}
    texts = [word.decode() for word in sorted(found)[:_DICTIONARY_WORDS]]
    return "".join(f'"{text}"\n' for text in (*texts, *_STUMBLING_BLOCKS))


if __name__ == "__main__":
    sys.exit(main())
