"""A local page to leaf through a run: its domains, methods, errors and disagreements, and pictures of one's own.

Served by Python's own `http.server` and one HTML file without dependencies: it opens in a second, also over a
forwarded port and without a network, which a toolkit of web widgets would not.
"""
