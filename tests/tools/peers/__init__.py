"""What tests/tools/benchmark.py runs in other processes: peer servers, clients, and the chart."""
