"""How good a trained network is: scores, pictures and a report."""
