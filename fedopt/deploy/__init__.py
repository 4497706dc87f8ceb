"""A federation on real machines: its folder, its server, its clients; with Docker or without.

`folder` writes what each of them needs (certificates, keys, the Flower app, compose files), `serve` keeps the server's
processes and runs one experiment after another, `join` keeps a client's SuperNode.
"""
