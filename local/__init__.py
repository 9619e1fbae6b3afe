"""SchemaHub on one machine: the embedded AWS, the exchange simulator and the demo. In no Lambda layer."""
