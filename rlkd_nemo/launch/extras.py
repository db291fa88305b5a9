"""What to install when a command needs a library that is no part of the plain installation."""

from __future__ import annotations

# Modules of each extra of setup.py, as they are imported.
EXTRAS = {
    "gsrm": (
        "httpx2",
        "aiohttp",
        "starlette",
        "uvicorn",
        "uvloop",
        "httptools",
        "stamina",
        "aiolimiter",
        "prometheus_client",
        "math_verify",
    )
}


def advice(error: ModuleNotFoundError) -> str | None:
    """One sentence with the extra that brings the module; None where none does."""
    module = (error.name or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if module in modules:
            return f"{module} is not installed, which this command needs; pip install 'rlkd_nemo[{extra}]'"
    return None
