"""Passes: pure functions Graph -> (Graph, Report), and the pipeline that orders them."""
