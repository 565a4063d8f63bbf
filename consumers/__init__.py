"""Agents: the runner, one attempt as a pipeline, leases."""

if __name__ != "laxity.consumers":
    raise ImportError("import laxity.consumers: under its bare name every class would exist twice")
