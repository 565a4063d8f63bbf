"""Who may do what: roles.toml says it, the modules beside it make it so in Kafka and Redis."""
