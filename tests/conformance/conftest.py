"""One line a peer at the end of the run: how many sets were compared, and how many are equal."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for kind in ("passed", "failed"):
        for report in terminalreporter.stats.get(kind, []):
            for name, words in getattr(report, "user_properties", []):
                if name == "conformance":
                    terminalreporter.write_line(words)
