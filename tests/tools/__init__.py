"""Programs that the tests use or that are run by hand."""
