"""The scheduler: pure stages at the root in the order of the flow, effects in the subfolders."""

if __name__ != "laxity.streams":
    raise ImportError("import laxity.streams: under its bare name every class would exist twice")
