"""Triggers: what asks for work."""

if __name__ != "laxity.producers":
    raise ImportError("import laxity.producers: under its bare name every class would exist twice")
