"""What runs it: the local stack, provisioning, the command line, the demonstration."""

if __name__ != "laxity.infra":
    raise ImportError("import laxity.infra: under its bare name every class would exist twice")
