"""The contract: Avro schemas, record types, topic catalogue, wire format, ids, time, Kafka settings."""

if __name__ != "laxity.schemas":
    raise ImportError("import laxity.schemas: under its bare name every class would exist twice")
