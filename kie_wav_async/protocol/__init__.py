"""All facts about the service: requests, responses, codes, URLs. Pure."""
