"""The test suite: ``python -m unittest`` here, ``python tests`` everywhere."""
