"""The networks: linen modules that know no schedule, loss or mesh."""
