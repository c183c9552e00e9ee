"""What pip's output means for the person in front of it. Standard library only."""

from __future__ import annotations

import re

# The order counts: without a network, pip also says that it found no version.
_CAUSES = (
    (
        r"No space left on device|Errno 28\b|Disk quota exceeded",
        "the disk is full.",
        "Free some space and try again; TMPDIR=/larger/disk moves the temporary folder, which pip needs too.",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError|invalid peer certificate",
        "the package index's certificate was refused.",
        "Behind a proxy that inspects traffic, set PIP_CERT to its certificate file and try again.",
    ),
    (
        r"name resolution|Name or service not known|NewConnectionError|Network is unreachable|ProxyError"
        r"|ConnectTimeout|ReadTimeout|Read timed out|Connection refused|Connection reset|Max retries exceeded"
        r"|Failed to establish a new connection|error sending request|dns error|IncompleteRead",
        "the package index can't be reached.",
        "Check the network, or set HTTPS_PROXY if there is a proxy, and try again.",
    ),
    (
        r"Permission denied|Errno 13\b|Read-only file system",
        "a folder can't be written.",
        "Run it as the owner of this folder, or clone to one of your own.",
    ),
    (r"No module named pip\b", "this Python has no pip.", "Install it with `python -m ensurepip`."),
    (
        r"is not a supported wheel on this platform|Could not find a version|No matching distribution"
        r"|No solution found|ResolutionImpossible",
        "a pinned package has no build for this Python and machine.",
        "Linux on x86-64 with Python 3.11 is known to work; the output above names the package.",
    ),
)


def explain_pip_failure(output: str) -> tuple[str, str]:
    """(cause, what to do next) of a failed pip or uv run, from what it printed."""
    for pattern, cause, hint in _CAUSES:
        if re.search(pattern, output):
            return cause, hint
    errors = [line for line in output.splitlines() if line.lower().startswith("error")]
    return (errors[-1] if errors else "pip gave no reason."), "The output above is all there is."


def lacks_cpu_torch(output: str) -> bool:
    """True when pip failed only because torch's CPU build is on no index it knows."""
    named = re.search(
        r"(No matching distribution found for|satisfies the requirement) torch==\S+\+cpu", output
    )
    return bool(named) and explain_pip_failure(output)[0].startswith("a pinned package")


def explain_build_failure(output: str) -> tuple[str, str]:
    """The same for a package that pip compiles: the compiler's first error, where it came so far."""
    found = re.search(r"(?:fatal )?error: (?!subprocess|metadata)(.+)|CMake Error[^\n]*\n\s*(.+)", output)
    if found is None or re.search(_CAUSES[0][0], output):
        return explain_pip_failure(output)
    said = (found[1] or found[2]).strip().rstrip(".")
    return (
        f"{said}.",
        "The output above and build/setup.log say more; the rest of the workbench needs it not.",
    )


def explain_model_failure(output: str) -> tuple[str, str]:
    """The same for `python -m core.embedded`, which ends with its own error in one line."""
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    return (errors[-1].removeprefix("error: ") if errors else "it gave no reason."), ""
