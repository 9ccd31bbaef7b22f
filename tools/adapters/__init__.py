"""Tools written for other projects: verl's classes and MCP servers."""
