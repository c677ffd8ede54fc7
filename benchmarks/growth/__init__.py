"""How the cost of a train step grows with the work, as a table and a picture."""
