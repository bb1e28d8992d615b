"""OpenAI's API over HTTP: an application in which each file has the routes of one endpoint. Imports no torch."""
