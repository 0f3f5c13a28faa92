"""What the proxy costs, measured against what it could cost: `nox -s bench`, or `python -m benchmarks --help`.

Nothing here is run by the test suite, but for a smoke run of a few seconds. docs/performance.md tells how to read the
results.
"""
