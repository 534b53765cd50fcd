from conftest_of_reports import report, runs

__all__ = ["report", "runs"]
