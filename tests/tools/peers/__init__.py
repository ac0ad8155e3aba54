"""The programs that benchmark.py runs in other processes, and the chart."""
