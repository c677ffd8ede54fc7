"""One module a verb: from the command line to calls."""
