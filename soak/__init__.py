"""Long runs of `teesign serve` under mixed load and faults, and the figures of docs/reliability.md: `nox -s soak`.

Linux only, loopback only.
"""
