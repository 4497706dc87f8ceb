"""The server of a deployed federation: a Flower ServerApp."""
