"""Files and vector stores as OpenAI has them, served by the retrieval process; gateways relay to it."""
