"""The client of a deployed federation: a Flower ClientApp."""
