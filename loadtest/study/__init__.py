"""How well the gateway routes: a study on a recorded trace."""
