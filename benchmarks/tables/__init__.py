"""The paper's tables in small, on the digits."""
