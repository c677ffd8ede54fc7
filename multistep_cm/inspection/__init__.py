"""What finished runs hold, read and drawn for a report."""
