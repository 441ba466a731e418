"""The recipes that come with the package, as YAML, and their JSON schema."""
